"""A study: a YAML file read and checked, its image folders, and what a run of it is known by (`accuracy.py`)."""
from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import yaml

from benchmarks.measure import make_room
from timm_multimix.data import DigitsReader
from timm_multimix.errors import SettingError, nearest
from timm_multimix.files import whole_folder

KEYS = ('data', 'base', 'seeds', 'judge', 'runs')
MORE_KEYS = ('rivals', 'times')
PARTS = ('held_out', 'test')
TEACHER = 'multimix_teacher'


def beside(path: Path, folder: str, other: str, suffix: str) -> Path:
    """The file of the same name beside a study or its results; those that come with us lie in folders of their own."""
    place = path.resolve().parent
    return (place.parent / other if place.name == folder else place) / f'{path.stem}{suffix}'


def read_study(path: Path, subset: int = 0) -> dict[str, Any]:
    """The study, checked.

    Args:
        path: the YAML file.
        subset: another choice of images than its own, which is 0.

    Raises:
        SettingError: keys that are missing or unknown, or values that cannot be.
    """
    study = yaml.safe_load(path.read_text())
    if 'like' in study:
        other = read_study(path.with_name(study.pop('like')))
        study.update({key: {**other[key], **(study.get(key) or {})} for key in ('data', 'base')})
        study = {**{key: other[key] for key in KEYS}, **study}
    for key in study:
        if key not in KEYS + MORE_KEYS:
            raise SettingError(f'{path}: {key!r} is not a part of a study.{nearest(key, KEYS + MORE_KEYS)}')
    for key in KEYS:
        if not study.get(key):
            raise SettingError(f'{path}: {key!r} is missing.')
    if study['judge'] not in PARTS:
        raise SettingError(f'{path}: judge is {study["judge"]!r}, but it must be one of {", ".join(PARTS)}.')
    images = study['data'].get('images')
    if images not in (None, 'digits'):
        raise SettingError(f"{path}: data's images is {images!r}, but it must be 'digits', or left out for --data-dir.")
    for name in study.get('rivals') or ():
        if name not in study['runs']:
            raise SettingError(f'{path}: {name!r} of rivals is not one of the runs.{nearest(name, study["runs"])}')
    for name, settings in study['runs'].items():
        teacher = (settings or {}).get(TEACHER)
        if isinstance(teacher, dict) and 'study' in teacher:
            teacher['of'] = read_study(path.with_name(teacher['study']), subset)
        for what, (of, before) in befores(study, settings or {}).items():
            if before not in of['runs']:
                raise SettingError(f'{path}: {name!r} has {what} {before!r}, which is not one of the runs.'
                                   f'{nearest(before, of["runs"])}')
            if befores(of, of['runs'][before] or {}):
                raise SettingError(f'{path}: {name!r} has {what} {before!r}, which needs another run itself.')
    if subset:
        study['data']['subset'] = subset
    return study


def befores(study: dict[str, Any], settings: dict[str, Any]) -> dict[str, tuple[dict[str, Any], str]]:
    """The runs that one of these settings needs first, each as its study and its name: `after`, and the teacher."""
    found = {} if settings.get('after') is None else {'after': (study, settings['after'])}
    if isinstance(teacher := settings.get(TEACHER), dict):
        found[TEACHER] = teacher.get('of', study), teacher['run']
    return found


def write_digits(folder: Path) -> None:
    """The embedded digits as an image folder with `train` and `validation`."""
    for part in ('train', 'validation'):
        reader = DigitsReader(part)
        for index in range(len(reader)):
            image = make_room(folder / part / reader.filename(index))
            image.write_bytes(reader[index][0].read())


def make_folder(root: Path, sizes: dict[str, int], on: str, folder: Path) -> None:
    """An image folder of links: `train`, balanced, `judge`, held out of the training data or the test data, and
    `validation`, its first images. Which images is fixed by sizes['subset'] alone."""
    wanted = {'train': ('train', 0, sizes['train'])}
    wanted['judge'] = ('train', sizes['train'], sizes['held_out']) if on == 'held_out' else (
        'validation', 0, sizes['test'])
    wanted['validation'] = (*wanted['judge'][:2], sizes.get('watch') or wanted['judge'][2])
    for part, (split, skip, count) in wanted.items():
        classes = sorted(p for p in (root / split).iterdir() if p.is_dir())
        each, first = count // len(classes), skip // len(classes)
        for source in classes:
            images = sorted(source.iterdir())
            random.Random(f'{split}/{source.name}/{sizes.get("subset") or ""}').shuffle(images)
            chosen = images[first:first + each]
            if len(chosen) < each:
                raise SettingError(f'{source} has {len(images)} images, but {first + each} are needed.')
            if part == 'train':
                chosen = chosen[:class_sizes(sizes, len(classes))[classes.index(source)]]
            (folder / part / source.name).mkdir(parents=True)
            for image in chosen:
                (folder / part / source.name / image.name).symlink_to(image.resolve())


def class_sizes(sizes: dict[str, int], classes: int) -> list[int]:
    """Training images of each class: alike, or with `imbalance` fewer from the first to the last, geometrically."""
    tail = sizes.get('imbalance') or 1
    return [max(1, round(sizes['train'] // classes * tail ** (-index / max(1, classes - 1))))
            for index in range(classes)]


def write_images(study: dict[str, Any], data_dir: Path, folder: Path) -> None:
    """A study's image folder: `train`, and as `validation` all the images that judge.

    Raises:
        SettingError: the folder exists; data_dir lacks images; the study has other images for every seed.
    """
    if study['data'].get('subset') == 'seed':
        raise SettingError('data has subset: seed, other images for every seed. Give subset a number.')
    if folder.exists():
        raise SettingError(f'{folder} exists. Name a folder that does not.')
    sizes = {key: value for key, value in study['data'].items() if key != 'watch'}
    with whole_folder(folder, flushed=False) as new:
        make_folder(data_dir, sizes, study['judge'], new)
        shutil.rmtree(new / 'judge')  # the same


def settings_of(study: dict[str, Any], name: str, seed: int) -> dict[str, Any]:
    """Flags of train.py, and perhaps a variant, of one run; of a run that it needs first, the flags of that."""
    settings = {**study['base'], **(study['runs'][name] or {}), 'seed': seed}
    return settings | {what: settings_of(*before, seed) for what, before in befores(study, settings).items()}


def key_of(study: dict[str, Any], name: str, seed: int) -> str:
    """What a finished run is known by: its settings, its images and who judges, whatever it is called."""
    return key_of_settings(settings_of(study, name, seed), study)


def key_of_settings(settings: dict[str, Any], study: dict[str, Any]) -> str:
    what = json.dumps([settings, study['data'], study['judge']], sort_keys=True)
    return hashlib.sha1(what.encode()).hexdigest()
