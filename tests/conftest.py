"""Fixtures shared by the tests."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Without a GPU, Triton's kernels run in its interpreter. It must be told before it is first imported.
if not os.path.exists('/dev/nvidiactl'):
    os.environ.setdefault('TRITON_INTERPRET', '1')

import pytest
import torch
from hypothesis import settings
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # train.py is a script beside the package

# The clients under test must not wait for a network that a test never needs.
os.environ.setdefault('HF_HUB_OFFLINE', '1')


# A commit is judged on the same examples every time; whoever runs the tests at home looks for new ones.
settings.register_profile('ci', derandomize=True)
if os.environ.get('CI'):
    settings.load_profile('ci')


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def run_train(*args: str, timeout: int = 300, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """train.py as a user runs it: a process of its own."""
    return subprocess.run([sys.executable, str(ROOT / 'train.py'), *args], capture_output=True, text=True,
                          timeout=timeout, cwd=cwd)


def write_images(folder: Path, classes: int = 3, per_class: int = 6, size: int = 32) -> Path:
    """A tiny ImageFolder: split/class/number.png, every class its own colour."""
    generator = torch.Generator().manual_seed(1)
    for split in ('train', 'validation'):
        for c in range(classes):
            where = folder / split / f'class_{c}'
            where.mkdir(parents=True)
            for i in range(per_class):
                pixels = torch.randint(0, 60, (size, size, 3), generator=generator, dtype=torch.uint8)
                pixels[..., c % 3] += 180
                Image.fromarray(pixels.numpy()).save(where / f'{i}.png')
    return folder


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / 'images')
