"""Fine-tuning in stages, first the new classifier and then everything, in a plain loop: python examples/stages.py"""
import os

import timm
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.utils import freeze, unfreeze
from torch.utils.data import DataLoader, TensorDataset

import timm_multimix

most = int(os.environ.get('EPOCHS', 4))
torch.manual_seed(0)

digits = load_digits()
x = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1).repeat(1, 3, 1, 1)
x = torch.nn.functional.interpolate(x, size=64, mode='bilinear')
x, x_test, y, y_test = train_test_split(x, torch.tensor(digits.target), test_size=0.2, random_state=0)
loader = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True, drop_last=True)

net = timm.create_model('test_efficientnet', num_classes=10)  # and pretrained=True, where it has weights for its size
body = [name for name, _ in net.named_children() if name != net.pretrained_cfg['classifier']]
model = timm_multimix.wrap(net, 'dense', input_size=(3, 64, 64))

for stage, epochs, lr in (('classifier', most // 2, 1e-2), ('all layers', most, 2e-3)):
    if stage == 'classifier':
        freeze(net, body)    # BatchNorm keeps its statistics, too
    else:
        unfreeze(net, body)  # gives back BatchNorm as well
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    for epoch in range(epochs):
        model.set_progress(epoch, epochs)
        for images, target in loader:
            model(images, target).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        accuracy = (model.eval()(x_test).argmax(1) == y_test).float().mean().item()
    model.train()
    print(f'{stage}: {accuracy:.1%} of {len(x_test)} test images are right')
