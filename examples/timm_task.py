"""timm's training loop with MultiMix; optimizer, schedule and averaged weights are timm's: python examples/timm_task.py

It writes digits.safetensors, the weights of a plain timm model.
"""
import os

import timm
import torch
from safetensors.torch import save_model
from timm.data import ImageDataset, create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, accuracy

import timm_multimix
from timm_multimix.data import DigitsReader

epochs = int(os.environ.get('EPOCHS', 10))
device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
torch.manual_seed(0)

# Digits that come with scikit-learn. For a folder of images: timm.data.create_dataset('', root=FOLDER, split='train').
train_set, test_set = (ImageDataset('', reader=DigitsReader(split)) for split in ('train', 'validation'))
common = {'input_size': (3, 64, 64), 'batch_size': 64, 'use_prefetcher': False, 'num_workers': 0,
          'persistent_workers': False}
train_loader = create_loader(train_set, is_training=True, scale=(0.7, 1), hflip=0, color_jitter=0, **common)
test_loader = create_loader(test_set, crop_pct=1, **common)

# Half of the steps mix embeddings, the others images, by mixup or CutMix. Mixing begins slowly: it is whole half-way.
model = timm.create_model('test_convnext', num_classes=10)
model = timm_multimix.wrap(model, 'dense', input_size=(3, 64, 64), prob=0.5, mixup=0.2, cutmix=1, ramp=0.5)
task = timm_multimix.MultiMixTask(model, device=device).to(device)
task.setup_ema(decay=0.99, use_warmup=True)

optimizer = create_optimizer_v2(model, opt='adamw', lr=2e-3, weight_decay=0.05)
scheduler, _ = create_scheduler_v2(optimizer, 'cosine', num_epochs=epochs, warmup_epochs=1, step_on_epochs=False,
                                   updates_per_epoch=len(train_loader))


@torch.no_grad()
def test(model: torch.nn.Module) -> float:
    """Accuracy in %."""
    top1 = AverageMeter()
    model.eval()
    for images, target in test_loader:
        top1.update(accuracy(model(images.to(device)), target.to(device))[0].item(), len(target))
    return top1.avg


step = 0
for epoch in range(epochs):
    task.train()
    for images, target in train_loader:
        task.set_progress(step, epochs * len(train_loader))
        task(images.to(device), target.to(device))['loss'].backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        task.update_ema(step)
        scheduler.step_update(step)
    print(f'epoch {epoch + 1}: {test(task.get_eval_model()):.1f} % of the test images are right, '
          f'{test(task.get_eval_model(ema=True)):.1f} % with averaged weights')

print('steps that mixed:', dict(task.policy.counts))
save_model(task.get_eval_model(ema=True), 'digits.safetensors')
print("timm.create_model('test_convnext', num_classes=10, checkpoint_path='digits.safetensors') loads the model")
