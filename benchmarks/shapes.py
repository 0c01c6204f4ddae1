"""A small detection data set to try things with: circles, squares and triangles, in VOC's layout or in COCO's.

    python -m benchmarks.shapes shapes --format voc
"""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ('circle', 'square', 'triangle')


Objects = list[tuple[str, tuple[int, int, int, int]]]


def draw(rng: np.random.Generator, size: int) -> tuple[Image.Image, Objects]:
    """Noise with one to three shapes that do not overlap, and their boxes (x0, y0, x1, y1), ends exclusive."""
    image = Image.fromarray(rng.integers(0, 90, (size, size, 3), dtype=np.uint8))
    pen, objects = ImageDraw.Draw(image), Objects()
    for _ in range(int(rng.integers(1, 4))):
        side = int(rng.integers(size // 5, size // 2))
        x, y = (int(v) for v in rng.integers(0, size - side, 2))
        box = x, y, x + side, y + side
        if any(x < b[2] and b[0] < x + side and y < b[3] and b[1] < y + side for _, b in objects):
            continue
        name = SHAPES[int(rng.integers(len(SHAPES)))]
        fill = tuple(int(v) for v in rng.integers(120, 256, 3))
        ends = x, y, x + side - 1, y + side - 1  # Pillow draws both ends
        if name == 'circle':
            pen.ellipse(ends, fill=fill)
        elif name == 'square':
            pen.rectangle(ends, fill=fill)
        else:
            pen.polygon([(x, y + side - 1), (x + side - 1, y + side - 1), (x + side // 2, y)], fill=fill)
        objects.append((name, box))
    return image, objects


def write(folder: Path, layout: str = 'voc', train: int = 200, test: int = 50, size: int = 128, seed: int = 0) -> Path:
    """Write the data set; 'voc' as VOC2007/ with lists trainval and test, 'coco' as annotations/ and train/, val/."""
    rng = np.random.default_rng(seed)
    names = ('trainval', 'test') if layout == 'voc' else ('train', 'val')
    for split, count in zip(names, (train, test)):
        images = folder / ('VOC2007/JPEGImages' if layout == 'voc' else split)
        images.mkdir(parents=True, exist_ok=True)
        made = []
        for i in range(count):
            name = f'{split}_{i:05d}'
            image, objects = draw(rng, size)
            image.save(images / f'{name}.jpg', quality=95)
            made.append((name, objects))
        if layout == 'voc':
            _voc(folder / 'VOC2007', split, made, size)
        else:
            _coco(folder / 'annotations', split, made, size)
    return folder


def _voc(folder: Path, split: str, made: list[tuple[str, Objects]], size: int) -> None:
    for part in ('Annotations', 'ImageSets/Main'):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name, objects in made:
        boxes = ''.join(
            f'<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>'
            f'<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>' for label, (x0, y0, x1, y1) in objects)
        (folder / 'Annotations' / f'{name}.xml').write_text(
            f'<annotation><filename>{name}.jpg</filename><size><width>{size}</width><height>{size}</height>'
            f'<depth>3</depth></size>{boxes}</annotation>')
    (folder / 'ImageSets' / 'Main' / f'{split}.txt').write_text(''.join(f'{name}\n' for name, _ in made))


def _coco(folder: Path, split: str, made: list[tuple[str, Objects]], size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    annotations = [
        {'id': i, 'image_id': image, 'category_id': 10 * SHAPES.index(label) + 1, 'bbox': [x0, y0, x1 - x0, y1 - y0],
         'area': (x1 - x0) * (y1 - y0), 'iscrowd': 0}
        for i, (image, label, (x0, y0, x1, y1)) in enumerate(
            ((k, *one) for k, (_, objects) in enumerate(made) for one in objects), 1)]
    (folder / f'instances_{split}.json').write_text(json.dumps({
        'images': [{'id': k, 'file_name': f'{name}.jpg', 'width': size, 'height': size}
                   for k, (name, _) in enumerate(made)],
        'annotations': annotations,
        'categories': [{'id': 10 * i + 1, 'name': name} for i, name in enumerate(SHAPES)]}))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description='Write a small detection data set of shapes.')
    parser.add_argument('folder', type=Path)
    parser.add_argument('--format', choices=('voc', 'coco'), default='voc')
    for name, default in (('train', 200), ('test', 50), ('size', 128), ('seed', 0)):
        parser.add_argument(f'--{name}', type=int, default=default)
    args = parser.parse_args(argv)
    print(write(args.folder, args.format, args.train, args.test, args.size, args.seed))


if __name__ == '__main__':
    main(sys.argv[1:])
