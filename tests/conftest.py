"""Fixtures shared by the tests."""
from __future__ import annotations

import os
import sys
from pathlib import Path

# Without a GPU, Triton's kernels run in its interpreter. It must be told before it is first imported.
if not os.path.exists('/dev/nvidiactl'):
    os.environ.setdefault('TRITON_INTERPRET', '1')
# The clients under test must not wait for a network that a test never needs. Their library reads it at its import.
os.environ.setdefault('HF_HUB_OFFLINE', '1')

import pytest
import torch
from hypothesis import settings
from PIL import Image

from timm_multimix.files import whole
from timm_multimix.runs.summary import read_summary
from timm_multimix.training import output

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # train.py is a script beside the package


# A commit is judged on the same examples every time; whoever runs the tests at home looks for new ones.
settings.register_profile('ci', derandomize=True)
if os.environ.get('CI'):
    settings.load_profile('ci')


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def blank_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings in the tests' own process write an empty curves.png: drawing it takes longer than they do.

    Those in processes of their own draw it, and so do the tests of what is drawn.
    """
    def plot_curves(summary: Path, path: Path, title: str = '') -> None:
        if read_summary(summary):
            with whole(path) as temporary:
                Image.new('RGB', (1, 1)).save(temporary, format='PNG')

    monkeypatch.setattr(output, 'plot_curves', plot_curves)


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
