"""Two heads on one embedding, mixed with one Λ: python examples/several_heads.py

Which digit it is, one class of ten; and what it is like, three labels that may hold together.
"""
import os

import timm
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset
from tqdm import trange

import timm_multimix as tm

torch.manual_seed(0)
digits = load_digits()  # 1 797 images of 8×8 pixels, which come with scikit-learn
x = torch.nn.functional.interpolate(torch.tensor(digits.images / 16).float().unsqueeze(1), size=64, mode='bilinear')
y = torch.tensor(digits.target)
is_like = torch.stack([y % 2 == 0, y >= 5, (y == 0) | (y == 6) | (y == 8) | (y == 9)], 1).float()  # even, large, round
train = DataLoader(TensorDataset(x[:1437], y[:1437], is_like[:1437]), batch_size=64, shuffle=True, drop_last=True)

backbone = timm.create_model('test_convnext', num_classes=0, in_chans=1)
heads = torch.nn.ModuleDict({'digit': torch.nn.Linear(backbone.num_features, 10),
                             'like': torch.nn.Linear(backbone.num_features, 3)})
optimizer = torch.optim.AdamW([*backbone.parameters(), *heads.parameters()], lr=2e-3)

for _ in trange(int(os.environ.get('EPOCHS', 10)), unit='epoch'):
    for images, digit, like in train:
        z = backbone(images)
        mixed = tm.sample_lam(1000, 1, len(images), alpha=0.02)  # one Λ for both, of about two examples in a mixture
        clean = torch.eye(len(images)).unsqueeze(1)              # and the images as they are
        sum(tm.mixed_cross_entropy(heads['digit'](z), digit, lam)
            + tm.mixed_cross_entropy(heads['like'](z), like, lam, binary=True) for lam in (mixed, clean)).backward()
        optimizer.step()
        optimizer.zero_grad()

with torch.no_grad():
    z = backbone.eval()(x[1437:])
    print(f'{(heads["digit"](z).argmax(1) == y[1437:]).float().mean():.1%} of the digits are right, and '
          f'{((heads["like"](z) > 0) == is_like[1437:].bool()).float().mean():.1%} of what they are like')
