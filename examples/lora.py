"""LoRA with peft: python examples/lora.py"""
import os

import timm
import torch
from peft import LoraConfig, get_peft_model
from sklearn.datasets import load_digits
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, TensorDataset, random_split

import timm_multimix

epochs = int(os.environ.get('EPOCHS', 10))
torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)  # 1 797 images of 8×8 pixels, which come with scikit-learn
images = interpolate(torch.tensor(images / 16).float().view(-1, 1, 8, 8), size=64)
train, test = random_split(TensorDataset(images, torch.tensor(labels)), [0.8, 0.2])

make = {'model_name': 'test_convnext', 'num_classes': 10, 'in_chans': 1}
model = timm_multimix.wrap(timm.create_model(**make), 'dense', input_size=(1, 64, 64))
# Wrapping what peft has changed gives the same loss. These weights are not pretrained, so the stem is trained too.
model = get_peft_model(model, LoraConfig(r=8, target_modules=['fc1', 'fc2'], modules_to_save=['head.fc', 'stem']))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
for epoch in range(epochs):
    model.set_progress(epoch, epochs)
    for images, target in DataLoader(train, 64, shuffle=True, drop_last=True):
        model(images, target).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

state = timm_multimix.unwrap(model.merge_and_unload()).state_dict()
plain = timm.create_model(**make).eval()
plain.load_state_dict(state)  # the keys are timm's
with torch.no_grad():
    right = torch.cat([plain(x).argmax(1) == y for x, y in DataLoader(test, 128)])
print(f'{right.float().mean():.1%} of {len(test)} test images are right')
