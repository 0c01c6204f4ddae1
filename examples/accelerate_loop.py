"""Hugging Face's Accelerate: accelerate launch examples/accelerate_loop.py"""
import os

import timm
import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, TensorDataset, random_split

import timm_multimix

epochs = int(os.environ.get('EPOCHS', 10))
torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)  # 1 797 images of 8×8 pixels, which come with scikit-learn
images = interpolate(torch.tensor(images / 16).float().view(-1, 1, 8, 8), size=64)
train, test = random_split(TensorDataset(images, torch.tensor(labels)), [0.8, 0.2])

# The seed is of what is mixed: processes with the same one agree on when, and each draws its own mixtures.
model = timm.create_model('test_convnext', num_classes=10, in_chans=1)
model = timm_multimix.wrap(model, 'dense', input_size=(1, 64, 64), seed=0)
policy = model.policy  # what is prepared has other names

accelerator = Accelerator(gradient_accumulation_steps=2)
model, optimizer, loader, test_loader = accelerator.prepare(
    model, torch.optim.AdamW(model.parameters(), lr=2e-3), DataLoader(train, 32, shuffle=True, drop_last=True),
    DataLoader(test, 128))
for epoch in range(epochs):
    policy.set_progress(epoch, epochs)
    model.train()
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(*batch).loss)  # a mean: Accelerate divides it by the number of micro-batches
            optimizer.step()
            optimizer.zero_grad()

plain = timm_multimix.unwrap(accelerator.unwrap_model(model)).eval()
with torch.no_grad():
    right = [accelerator.gather_for_metrics(plain(x).argmax(1) == y) for x, y in test_loader]
accelerator.print(f'{torch.cat(right).float().mean():.1%} of {len(test)} test images are right')
