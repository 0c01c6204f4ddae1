"""nn.DataParallel, one process for all GPUs of a machine: python examples/data_parallel.py

DistributedDataParallel is faster, and examples/fsdp2.py shards the model too.
"""
import os

import timm
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, TensorDataset, random_split

import timm_multimix

epochs = int(os.environ.get('EPOCHS', 10))
device = 'cuda' if torch.cuda.is_available() else 'cpu'
torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)  # 1 797 images of 8×8 pixels, which come with scikit-learn
images = interpolate(torch.tensor(images / 16).float().view(-1, 1, 8, 8), size=64)
train, test = random_split(TensorDataset(images, torch.tensor(labels)), [0.8, 0.2])
loader = DataLoader(train, 64, shuffle=True, drop_last=True)

# The network is spread over the GPUs, and its logits come together on the first, where they are mixed: one batch, as
# on one GPU. So the plain network is made parallel, and the loss is the loss alone.
plain = timm.create_model('test_convnext', num_classes=10, in_chans=1).to(device)
model = torch.nn.DataParallel(plain)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for _ in range(epochs):
    for images, target in loader:
        logits, target = model(images.to(device)), target.to(device)
        lam = timm_multimix.LamSampler(1000, 1, len(logits), alpha=0.02, device=logits.device)
        mixed = timm_multimix.mixed_cross_entropy(logits, target, lam)
        ((mixed + torch.nn.functional.cross_entropy(logits, target)) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()

plain.eval()
with torch.no_grad():
    right = [plain(x.to(device)).argmax(1).cpu() == y for x, y in DataLoader(test, 128)]
print(f'{torch.cat(right).float().mean():.1%} of {len(test)} test images are right')
