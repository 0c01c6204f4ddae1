"""Dense MultiMix in a plain PyTorch loop, on handwritten digits: python examples/minimal.py"""
import os

import timm
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, TensorDataset
from tqdm import trange

import timm_multimix

epochs = int(os.environ.get('EPOCHS', 10))
torch.manual_seed(0)

digits = load_digits()  # 1 797 images of 8×8 pixels, which come with scikit-learn
x = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
x = torch.nn.functional.interpolate(x, size=64, mode='bilinear')
x, x_test, y, y_test = train_test_split(x, torch.tensor(digits.target), test_size=0.2, random_state=0)
loader = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True, drop_last=True)

model = timm.create_model('test_convnext', num_classes=10, in_chans=1)  # timm's smallest ConvNeXt
model = timm_multimix.wrap(model, 'dense', input_size=(1, 64, 64))      # the one line
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

for epoch in trange(epochs, unit='epoch'):
    model.set_progress(epoch, epochs)  # mixing begins slowly
    for images, target in loader:
        model(images, target).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

model = timm_multimix.unwrap(model).eval()  # the timm model, trained
with torch.no_grad():
    accuracy = (model(x_test).argmax(1) == y_test).float().mean().item()
print(f'{accuracy:.1%} of {len(x_test)} test images are right')
