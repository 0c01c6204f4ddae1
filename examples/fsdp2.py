"""FSDP2, fully_shard, on several GPUs or machines: torchrun --standalone --nproc-per-node=2 examples/fsdp2.py"""
import os

import timm
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset, random_split

import timm_multimix

epochs, device = int(os.environ.get('EPOCHS', 10)), 'cuda' if torch.cuda.is_available() else 'cpu'
mesh = init_device_mesh(device, (int(os.environ['WORLD_SIZE']),))  # each process has its own GPU
torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)  # 1 797 images of 8×8 pixels, which come with scikit-learn
images = interpolate(torch.tensor(images / 16).float().view(-1, 1, 8, 8), size=64)
train, test = random_split(TensorDataset(images, torch.tensor(labels)), [0.8, 0.2])
loader = DataLoader(train, 32, sampler=(sampler := DistributedSampler(train)), drop_last=True)
make = {'model_name': 'test_convnext', 'num_classes': 10, 'in_chans': 1}
model = timm_multimix.wrap(timm.create_model(**make).to(device), 'dense', input_size=(1, 64, 64))
for module in (*model.stages, model):  # first wrapped, then sharded
    fully_shard(module, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for epoch in range(epochs):
    model.set_progress(epoch, epochs)
    sampler.set_epoch(epoch)
    for batch in loader:
        model(*(x.to(device) for x in batch)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
if dist.get_rank() == 0:  # the keys are timm's
    (plain := timm.create_model(**make).eval()).load_state_dict(state)
    right = torch.cat([plain(x).argmax(1) == y for x, y in DataLoader(test, 128)])
    print(f'{right.float().mean():.1%} of {len(test)} test images are right')
dist.destroy_process_group()
