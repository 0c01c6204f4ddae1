"""Where does attention look? Folders of photographs with boxes, few of each class to train on.

    python -m benchmarks.boxes tinyimagenet tiny-imagenet-200 OUT --seed 1
    python -m benchmarks.boxes raccoons raccoon_dataset OUT --seed 1 --beside monkeys10

`OUT/images` is an image folder of links, `train` with 20 photographs a class and `validation`. `OUT/boxes` has an
annotation of every validation image that has a box, as PASCAL VOC has them, for `evaluate.py --on attention --masks`.

tinyimagenet: every fifth class, as published. raccoons: github.com/datitran/raccoon_dataset, one class more of another
image folder; ImageNet has no such class.
"""
from __future__ import annotations

import argparse
import random
from collections.abc import Iterable
from pathlib import Path

from timm_multimix.errors import SettingError

EACH = 20  # photographs of a class to train on
VOC = ('<annotation><size><width>{size}</width><height>{size}</height></size><object><bndbox><xmin>{0}</xmin>'
       '<ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object></annotation>')


def link(images: Iterable[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        (folder / image.name).symlink_to(image.resolve())


def tinyimagenet(source: Path, out: Path, chance: random.Random) -> None:
    classes = sorted(p.name for p in (source / 'train').iterdir())[::5]
    for name in classes:
        link(chance.sample(sorted((source / 'train' / name / 'images').iterdir()), EACH), out / 'images/train' / name)
    for line in (source / 'val/val_annotations.txt').read_text().splitlines():
        image, name, *box = line.split()
        if name in classes:
            link([source / 'val/images' / image], out / 'images/validation' / name)
            boxes = out / 'boxes' / name
            boxes.mkdir(parents=True, exist_ok=True)
            corners = [int(number) + 1 for number in box]  # VOC counts from 1
            (boxes / image).with_suffix('.xml').write_text(VOC.format(*corners, size=64))


def raccoons(source: Path, out: Path, chance: random.Random, beside: Path) -> None:
    for folder in sorted((beside / 'train').iterdir()):
        link(chance.sample(sorted(folder.iterdir()), EACH), out / 'images/train' / folder.name)
    for folder in sorted((beside / 'validation').iterdir()):
        link(folder.iterdir(), out / 'images/validation' / folder.name)
    images = sorted(source.rglob('*.jpg'))
    chance.shuffle(images)
    link(images[:EACH], out / 'images/train/raccoon')
    link(images[EACH:], out / 'images/validation/raccoon')
    link(source.rglob('*.xml'), out / 'boxes/raccoon')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('what', choices=['tinyimagenet', 'raccoons'])
    parser.add_argument('source', type=Path, help='the data set as published')
    parser.add_argument('out', type=Path, help='a folder that does not exist yet')
    parser.add_argument('--seed', type=int, default=1, help='which images train')
    parser.add_argument('--beside', type=Path, metavar='DIR', help='raccoons: an image folder of other classes')
    args = parser.parse_args()
    if args.out.exists():
        raise SettingError(f'{args.out} exists. Name a folder that does not.')
    chance = random.Random(args.seed)
    if args.what == 'tinyimagenet':
        tinyimagenet(args.source, args.out, chance)
    elif args.beside is None:
        raise SettingError('raccoons need --beside, an image folder of other classes with train/ and validation/.')
    else:
        raccoons(args.source, args.out, chance, args.beside)


if __name__ == '__main__':
    main()
