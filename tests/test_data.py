"""The embedded digits, folders of images, and what can be wrong with them."""
from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_digits
from timm.data import ImageDataset, create_loader

import train
from tests.conftest import write_images
from timm_multimix import SettingError
from timm_multimix.data import DigitsReader, class_names, create_train_val, unreadable_images


def test_digits_are_all_there_once_and_stratified() -> None:
    train, val = create_train_val('sklearn/digits', None)
    assert (len(train), len(val)) == (1442, 355)
    names = train.filenames() + val.filenames()
    assert len(set(names)) == 1797
    targets = load_digits().target
    assert all(int(name.split('/')[0]) == targets[int(name.split('/')[1][:4])] for name in names)
    for c in range(10):
        share = sum(t == c for _, t in val.reader.samples) / (targets == c).sum()
        assert 0.19 < share < 0.21
    assert len(DigitsReader('all')) == 1797
    assert class_names(train) == [str(c) for c in range(10)]


@pytest.mark.parametrize('name, splits', [
    ('sklearn/digits', ('train', 'train')), ('sklearn/digits', ('val', 'test')), ('torch/cifar10', ('test', 'test'))])
def test_validating_on_the_training_images_is_refused(name: str, splits: tuple[str, str]) -> None:
    with pytest.raises(SettingError, match=f'--train-split {splits[0]} and --val-split {splits[1]} are the same'):
        create_train_val(name, None, *splits)


def test_digits_are_rgb_images_that_show_the_digit() -> None:
    image, target = ImageDataset('', reader=DigitsReader('train'))[0]
    assert image.mode == 'RGB' and image.size == (32, 32) and target == 0
    small = image.convert('L').resize((8, 8), Image.Resampling.BOX)
    want = load_digits().images[0] * 255 / 16
    difference = abs(__import__('numpy').asarray(small, dtype=float) - want).mean()
    assert difference < 20


def test_digits_go_through_timms_loader() -> None:
    train, _ = create_train_val('sklearn/digits', None)
    loader = create_loader(train, (3, 32, 32), 16, is_training=True, use_prefetcher=False, num_workers=0,
                           persistent_workers=False)
    images, target = next(iter(loader))
    assert images.shape == (16, 3, 32, 32) and target.shape == (16,)


def test_unknown_split() -> None:
    with pytest.raises(SettingError, match="split is 'tain'"):
        DigitsReader('tain')


def test_folder(image_folder: Path) -> None:
    train, val = create_train_val('', str(image_folder))
    assert len(train) == len(val) == 18
    assert class_names(train) == ['class_0', 'class_1', 'class_2']
    assert unreadable_images(train) == []


def test_finds_unreadable_images(image_folder: Path) -> None:
    (image_folder / 'train' / 'class_0' / '0.png').write_bytes(b'not a picture')
    whole = (image_folder / 'train' / 'class_1' / '1.png').read_bytes()
    (image_folder / 'train' / 'class_1' / '1.png').write_bytes(whole[:len(whole) // 2])
    photo = Image.radial_gradient('L').convert('RGB')
    photo.save(image_folder / 'train' / 'class_2' / 'cut.jpg', quality=95)
    jpeg = (image_folder / 'train' / 'class_2' / 'cut.jpg').read_bytes()
    (image_folder / 'train' / 'class_2' / 'cut.jpg').write_bytes(jpeg[:len(jpeg) // 2])
    train, _ = create_train_val('', str(image_folder))
    bad = unreadable_images(train)
    assert [Path(path).name for _, path, _ in bad] == ['0.png', '1.png', 'cut.jpg']
    assert all(train.reader.samples[i][0] == path and problem for i, path, problem in bad)


def break_missing(folder: Path) -> str:
    return str(folder.parent / 'imagse')


def break_empty(folder: Path) -> str:
    shutil.rmtree(folder)
    for split in ('train', 'validation'):
        (folder / split).mkdir(parents=True)
    return str(folder)


def break_no_validation(folder: Path) -> str:
    shutil.rmtree(folder / 'validation')
    return str(folder)


def break_classes(folder: Path) -> str:
    os.rename(folder / 'validation' / 'class_1', folder / 'validation' / 'klass_1')
    return str(folder)


@pytest.mark.parametrize('breaking, words', [
    (break_missing, 'no such folder.* Did you mean images'),
    (break_empty, r'holds no image of a type that is read \(.png, .*\)\.$'),
    (break_no_validation, 'training and validation would see the same images.*It holds: train.'),
    (break_classes, r'different classes.*class_1 \(only in train\)'),
])
def test_broken_folders(image_folder: Path, breaking: object, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        create_train_val('', breaking(image_folder))  # type: ignore[operator]


@pytest.mark.parametrize('name, words', [
    ('sklearn/iris', 'only sklearn/digits'), ('cifar10', 'a name starts with one of'),
    ('troch/cifar10', 'Did you mean torch'),
    ('torch/cifar11', 'cannot be read'), ('', '--data-dir is not given'),
])
def test_unknown_names(name: str, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        create_train_val(name, None)


# ------------------------------------------------------------------------------------------------- timm's other kinds

SPLITS = ('train', 'validation')


def tars(folder: Path) -> None:
    for split in SPLITS:
        with tarfile.open(folder / f'{split}.tar', 'w') as tar:
            for path in sorted((folder / 'images' / split).rglob('*.png')):
                tar.add(path, str(path.relative_to(folder / 'images' / split)))


def shards(folder: Path) -> None:
    splits = {}
    for split in SPLITS:
        paths = sorted((folder / 'images' / split).rglob('*.png'))
        parts = {f'{split}-{k}.tar': paths[k::2] for k in range(2)}
        for name, part in parts.items():
            with tarfile.open(folder / name, 'w') as tar:
                for i, path in enumerate(part):
                    label = path.parent.name[-1]
                    for ending, data in (('png', path.read_bytes()), ('cls', label.encode()),
                                         ('json', json.dumps({'kind': int(label)}).encode())):
                        info = tarfile.TarInfo(f'{i:03d}.{ending}')
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
        splits[split] = {'name': split, 'num_samples': len(paths), 'filenames': list(parts),
                         'shard_lengths': [len(p) for p in parts.values()]}
    (folder / '_info.json').write_text(json.dumps({'splits': splits}))


@pytest.mark.parametrize('package, flags', [
    ('timm', '--data-dir {0} --train-split train.tar --val-split validation.tar'),
    ('torchvision', '--data-dir {0}/images --dataset torch/image_folder'),
    ('datasets', '--dataset hfds/{0}/images --data-dir {0}/cache --input-key image --target-key label'),
    ('datasets', '--dataset hfids/{0}/images --data-dir {0}/cache --epoch-repeats 2 '
     '--train-num-samples 18 --val-num-samples 18 --num-classes 3'),
    ('webdataset', '--dataset wds/x --data-dir {0} --num-classes 3 --target-key kind'),
    ('webdataset', '--dataset wds/x --data-dir {0} --num-classes 3 '
     '--val-split validation-{{0..1}}.tar --val-num-samples 18'),
], ids=lambda x: x if '-' not in x else '')
def test_other_kinds_of_data_sets_train(
        tmp_path: Path, package: str, flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(package)
    if package in ('datasets', 'webdataset'):
        pytest.importorskip('timm', '1.0.31', reason='older readers of streams want other flags')
    write_images(tmp_path / 'images')
    shards(tmp_path) if 'wds' in flags else tars(tmp_path)
    assert train.main([*flags.format(tmp_path).split(), '--model', 'test_resnet', '--img-size', '64', '-b', '6', '-j',
                       '0', '--epochs', '1', '--warmup-epochs', '0', '--multimix', 'dense', '--output', str(tmp_path),
                       '--experiment', 'x']) == 0, capsys.readouterr().err
    captured = capsys.readouterr()
    repeats = 2 if 'repeats' in flags else 1
    assert f'3 classes; 1 epoch of {3 * repeats} batches' in captured.out and '\r' not in captured.err
    if 'num-classes' not in flags:
        config = json.loads((tmp_path / 'x' / 'model' / 'config.json').read_text())
        assert config['label_names'] == ['class_0', 'class_1', 'class_2']


@pytest.mark.parametrize('name, words', [
    ('hfds/x', 'the package datasets, which is not installed: pip install datasets'),
    ('tfds/x', 'pip install tensorflow-datasets'), ('wds/x', 'pip install webdataset')])
def test_packages_that_are_missing(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('importlib.util.find_spec', lambda _: None)
    with pytest.raises(SettingError, match=words):
        create_train_val(name, None)


def test_data_sets_that_cannot_be(tmp_path: Path, image_folder: Path) -> None:
    write_images(tmp_path / 'more' / 'images')
    tars(tmp_path / 'more')
    with pytest.raises(SettingError, match=r'holds train.tar, validation.tar.*--train-split train.tar'):
        create_train_val('', str(tmp_path / 'more'), 'training', 'val')
    with pytest.raises(SettingError, match="--input-key is 'x', but only hfds/"):
        create_train_val('', str(image_folder), input_key='x')
