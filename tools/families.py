"""Write docs/families.md: how the models of every timm module end, and what mixing does with them.

    python tools/families.py

It builds the model of each module that is the least work (`tests/heads/contract.py` trains the same ones) and
describes it.
"""
from __future__ import annotations

import sys
import warnings
from pathlib import Path

import timm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.heads.contract import CUT, smallest  # noqa: E402
from timm_multimix import SettingError  # noqa: E402
from timm_multimix.heads import Description, description  # noqa: E402

INTRO = f"""# timm's families, and what mixing does with them

The table describes one model of every module of timm {timm.__version__}: the one that is the least work, with 1000
classes. `python tools/families.py` writes it. For any other model, ask `python -m timm_multimix describe NAME`.

| column | says |
|---|---|
| head | the layers that act between features and logits, in order |
| multimix | the features of the pooled embedding that is mixed, and the layer before which it is |
| dense | positions × features, at the image size that the model says it takes. \
Every layer of the head but the last is applied to one position at a time |

| module | model | head | multimix | dense | notes |
|---|---|---|---|---|---|
"""


def row(module: str, name: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            found = description(timm.create_model(name, num_classes=1000, **CUT.get(module, {})))
        except SettingError as e:
            return f'| {module} | {name} | | no | no | {e} |'
    cut = ', '.join(f'{k}={v}' for k, v in CUT.get(module, {}).items() if k != 'img_size')
    layers = ' → '.join(kind for _, kind in found.head)
    head_info = found.head_info
    dense = f'{head_info.positions} × {head_info.width}' if head_info else 'no'
    return (f'| {module} | {name} | {layers} | {found.width}, {" + ".join(found.classifiers)} | {dense} '
            f'| {"; ".join(filter(None, (f"described with {cut}" if cut else "", notes(found))))} |')


def notes(found: Description) -> str:
    said = []
    if found.refused:
        said.append(found.refused.split('. Use ')[0])
    if found.timm_args:
        said.append('its class token is switched to average pooling')
    if found.head_info and found.head_info.batch_norms:
        said.append('BatchNorm in the head uses running statistics for positions')
    if len(found.classifiers) > 1:
        said.append(f'the mean of {len(found.classifiers)} classifiers')
    return '; '.join(said)


def main() -> None:
    lines = []
    for module in timm.list_modules():
        name = smallest(module)
        if name:
            lines.append(row(module, name))
            print(lines[-1], flush=True)
    (ROOT / 'docs' / 'families.md').write_text(INTRO + '\n'.join(lines) + '\n')


if __name__ == '__main__':
    main()
