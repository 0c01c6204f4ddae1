"""Fixtures shared by the tests.

The process that hands out the tests reads this too, before the others start. So what takes seconds to import is
imported where it is used.

A commit is judged on the same examples every time: under CI, Hypothesis chooses its profile of that name by itself.
Whoever runs the tests at home looks for new ones.
"""
from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest

# Without a GPU, Triton's kernels run in its interpreter. It must be told before it is first imported.
if not os.path.exists('/dev/nvidiactl'):
    os.environ.setdefault('TRITON_INTERPRET', '1')
# The clients under test must not wait for a network that a test never needs. Their library reads it at its import.
os.environ.setdefault('HF_HUB_OFFLINE', '1')

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # train.py is a script beside the package


def pytest_collection_finish() -> None:
    """What the imports have made is no garbage, and is not looked through again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    import torch
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def blank_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings in the tests' own process draw no curves.png; the tests of what is drawn do."""
    from tests import blank
    from timm_multimix.training import output
    monkeypatch.setattr(output, 'plot_curves', blank.plot_curves)


@pytest.fixture
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does matplotlib draw any other picture."""
    from matplotlib.figure import Figure

    from tests import blank
    monkeypatch.setattr(Figure, 'savefig', blank.savefig)


def write_images(folder: Path, classes: int = 3, per_class: int = 6, size: int = 32) -> Path:
    """A tiny ImageFolder: split/class/number.png, every class its own colour."""
    import torch
    from PIL import Image
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
