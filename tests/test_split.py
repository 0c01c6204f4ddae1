"""Photographs in class folders, without splits: a part is held out, said, written down, and found again."""
from __future__ import annotations

import csv
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import evaluate
import train
from timm_multimix import SettingError
from timm_multimix.data import class_names, create_train_val
from timm_multimix.data.split import copies, hold_out, read_parts, split_folder
from timm_multimix.evaluate.images import open_split
from timm_multimix.runs.settings import parse_args
from timm_multimix.training.images import open_data_sets

pytestmark = pytest.mark.usefixtures('blank_pictures')
SMALL = ('--model', 'test_resnet', '--epochs', '1', '-j', '0', '--img-size', '32', '-b', '8', '--warmup-epochs', '0')


def photographs(folder: Path, **counts: int) -> Path:
    """CLASS/*.jpg, each image another."""
    for c, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new('RGB', (40 + i, 32), (60 * c, 3 * i, 90)).save(folder / name / f'{i}.jpg')
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return photographs(tmp_path / 'my_photos', cat=20, dog=10, eel=2, fox=1)


def names(dataset: Any) -> set[str]:
    return {dataset.filename(i) for i in range(len(dataset))}


def test_a_share_of_each_class_is_held_out(photos: Path) -> None:
    a, b = create_train_val('', str(photos))
    assert not names(a) & names(b) and len(names(a) | names(b)) == 33
    assert class_names(a) == class_names(b) == ['cat', 'dog', 'eel', 'fox']
    assert Counter(target for _, target in b.reader.samples) == {0: 3, 1: 2, 2: 1}  # of one image, none
    again = create_train_val('', str(photos), seed=7)
    assert names(again[1]) == names(b) and not [i for i in range(20) if f'cat/{i}.jpg' in names(b)] == [0, 1, 2]
    third = create_train_val('', str(photos), val_fraction=0.5)[1]
    assert Counter(target for _, target in third.reader.samples) == {0: 10, 1: 5, 2: 1}
    assert names(b) < names(third)


def test_an_image_more_moves_no_other() -> None:
    many = [(f'a/{i}.jpg', 0) for i in range(100)]
    before, after = hold_out(many, 0.15), hold_out([*many, ('a/new.jpg', 0)], 0.15)
    assert len(before) == 15 and len(before - after) <= 1


def test_nothing_can_be_held_out_of_single_images(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match='no class with two images'):
        create_train_val('', str(photographs(tmp_path / 'x', cat=1, dog=1)))


def test_a_class_with_the_name_of_a_split_says_so(photos: Path) -> None:
    (photos / 'dog').rename(photos / 'valid')
    with pytest.raises(SettingError, match="It holds: cat, eel, fox, valid. If 'valid' is a class, rename its folder."):
        create_train_val('', str(photos))
    (photos / 'valid').rename(photos / 'train')
    with pytest.raises(SettingError, match="If 'train' is a class, rename its folder"):
        create_train_val('', str(photos))


def test_a_split_whose_images_are_gone_says_so(photos: Path) -> None:
    parts = {'cat/gone.jpg': ('validation', 9), 'cat/0.jpg': ('train', 9)}
    with pytest.raises(SettingError, match='None of the images that the run held out .* Put them back, or start a new'):
        create_train_val('', str(photos), parts=parts)


def test_copies_on_both_sides_are_warned_of(photos: Path) -> None:
    train_set, val_set = create_train_val('', str(photos))
    assert copies(train_set, val_set) is None
    (trained, _), (held, _) = train_set.reader.samples[0], val_set.reader.samples[-1]
    same = Path(trained).read_bytes()
    Path(held).write_bytes(b'!' + same[1:])  # of the same size and end
    assert copies(train_set, val_set) is None
    Path(held).write_bytes(same)
    with pytest.warns(UserWarning, match='1 of 6 held-out images are exact copies of images that train, such as '
                                         f'{os.path.relpath(held, photos)} of {os.path.relpath(trained, photos)}: '):
        open_data_sets(parse_args([str(photos), '-b', '4', '-j', '0']))


def test_photographs_train_without_a_flag_and_are_judged_on_the_same_part(
        photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / 'out' / 'x'
    assert train.main([*SMALL, '--data-dir', str(photos), '--output', str(run.parent), '--experiment', 'x']) == 0
    out = capsys.readouterr().out
    assert (f'{photos} has no sub-folders for training and validation, so 6 of its 33 images are held out to validate '
            f'on (0.15 of each class, --val-fraction); split.csv lists them.') in out
    assert '27 training and 6 validation images' in out and 'args.yaml, split.csv' in out
    assert yaml.safe_load((run / 'args.yaml').read_text())['val_fraction'] == 0.15
    held = names(create_train_val('', str(photos))[1])
    with open(run / 'split.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 33 and {row['image'] for row in rows if row['split'] == 'validation'} == held
    assert all(int(row['bytes']) == os.path.getsize(photos / row['image']) for row in rows)

    flags = ['--data-dir', str(photos), '--on', 'accuracy', '-j', '0', '--device', 'cpu']
    moved = shutil.copytree(photos, tmp_path / 'moved')
    for source, folder in ((run, photos), (run / 'model', photos), (run / 'last.pth.tar', photos), (run, moved)):
        more = ['--model', 'test_resnet'] if source.is_file() else []
        assert evaluate.main([str(source), *flags, *more, '--data-dir', str(folder), '--output',
                              str(tmp_path / 'e')]) == 0
        assert '6 of its 33 images are those that' in capsys.readouterr().out
        assert f'6 of {folder}, split validation' in (tmp_path / 'e' / 'report.md').read_text()
    others = photographs(tmp_path / 'others', fox=1, eel=2, dog=3, cat=4)  # other photographs of the same names
    assert evaluate.main([str(run), *flags, '--data-dir', str(others), '--output', str(tmp_path / 'e')]) == 0
    doubt = f'so all 10 images are used. Nothing says which images of {others} x held out'
    assert doubt in capsys.readouterr().out and doubt in (tmp_path / 'e' / 'report.md').read_text()
    assert f'10 of {others}, split validation' in (tmp_path / 'e' / 'report.md').read_text()


def test_a_run_that_is_resumed_keeps_its_split(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / 'out' / 'x'
    assert train.main([*SMALL, '--data-dir', str(photos), '--output', str(run.parent), '--experiment', 'x']) == 0
    before = read_parts(run / 'split.csv')
    for i in range(20, 40):
        Image.new('RGB', (40, 32), (0, 5 * i, 9)).save(photos / 'cat' / f'{i}.jpg')
    assert train.main(['--resume', str(run), '--epochs', '2']) == 0
    after = read_parts(run / 'split.csv')
    assert len(after) == 53 and all(after[name] == part for name, part in before.items())
    assert {part for name, (part, _) in after.items() if name not in before} == {'train'}


def test_runs_are_compared_on_what_both_held_out(
        photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, fraction in (('few', '0.15'), ('many', '0.5')):
        assert train.main([*SMALL, '--data-dir', str(photos), '--output', str(tmp_path), '--experiment', name,
                           '--val-fraction', fraction]) == 0
    capsys.readouterr()
    assert evaluate.main([str(tmp_path / 'few'), str(tmp_path / 'many'), '--data-dir', str(photos), '--on', 'accuracy',
                          '-j', '0', '--output', str(tmp_path / 'e')]) == 0
    assert '6 of its 33 images are those that few, many held out' in capsys.readouterr().out


@pytest.mark.parametrize('training, validation', [
    ('train', 'val'), ('train', 'test'), ('Training', 'Testing'), ('train', 'valid')])
def test_usual_names_are_found(photos: Path, tmp_path: Path, training: str, validation: str,
                               capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / 'split'
    shutil.copytree(photos, folder / training)
    shutil.copytree(photos, folder / validation)
    (folder / validation / 'cat' / '0.jpg').unlink()
    assert train.main([*SMALL, '--data-dir', str(folder), '--output', str(tmp_path), '--experiment', 'x']) == 0
    out = capsys.readouterr().out
    assert '33 training and 32 validation images' in out
    tested = validation.lower().startswith('test')
    assert (f'no sub-folder for validation, so the images of {validation} validate.' in out) == tested
    saved = yaml.safe_load((tmp_path / 'x' / 'args.yaml').read_text())
    assert saved['val_split'] == (validation if tested else 'validation') and not (tmp_path / 'x/split.csv').exists()
    assert len(open_split('', str(folder), 'validation')) == 32 and len(open_split('', str(folder), 'train')) == 33


def test_only_what_is_asked_for_is_found(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / 'split'
    for name in ('train', 'val', 'test'):
        shutil.copytree(photos, folder / name)
    assert [split_folder(folder, name) for name in ('train', 'validation', 'test', 'other')] == [
        'train', 'val', 'test', None]
    shutil.rmtree(folder / 'test')
    assert split_folder(folder, 'test') is None
    with pytest.raises(SettingError, match='It holds: train, val.'):
        create_train_val('', str(folder), val_split='other')
    shutil.rmtree(folder / 'val')
    with pytest.raises(SettingError, match=f'--data-dir {folder}/train, of whose classes a share is then held out'):
        create_train_val('', str(folder))
    with pytest.raises(SettingError, match='training and validation would see the same images'):
        create_train_val('', str(photos), val_split='other')
    with pytest.raises(SettingError, match='training and validation would see the same images'):
        create_train_val('torch/image_folder', str(photos))


def test_the_largest_batch_is_named_and_works(
        photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*SMALL, '--data-dir', str(photos), '--output', str(tmp_path)]
    assert train.main([*command, '-b', '64']) == 2
    assert '--batch-size is 64, but there are only 27 training images: at most 27.' in capsys.readouterr().err
    assert train.main([*command, '-b', '27']) == 0


def test_a_fraction_that_does_nothing_is_said(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ('train', 'val'):
        shutil.copytree(photos, tmp_path / 'split' / name)
    assert train.main([*SMALL, '--data-dir', str(tmp_path / 'split'), '--output', str(tmp_path), '--val-fraction',
                       '0.3']) == 0
    assert '--val-fraction is 0.3, but it has no effect' in capsys.readouterr().out
    for wrong in ('0', '1'):
        assert train.main([*SMALL, '--data-dir', str(photos), '--val-fraction', wrong]) == 2
        assert 'above 0 and below 1' in capsys.readouterr().err
