"""The paper's data sets put in order, from small copies of the layouts they are published in."""
from __future__ import annotations

import hashlib
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision import datasets, transforms
from torchvision.datasets import imagenet as archives

import train
from timm_multimix import SettingError
from timm_multimix.data import create_train_val, prepare
from timm_multimix.data.__main__ import main
from timm_multimix.data.augment import as_published
from timm_multimix.runs.settings import parse_args
from timm_multimix.training.images import load_images


def picture(path: Path, colour: int, size: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (size, size), (colour, 255 - colour, 7)).save(path, format='PNG' if 'png' in path.name else 'JPEG')


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


# ------------------------------------------------------------------------------------------------------------ CIFAR

def raw_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, name: str = 'cifar10') -> tuple[np.ndarray, list[int]]:
    """Pickled batches as published, of 3 classes, and a torchvision that takes their checksums for the right ones."""
    kind = datasets.CIFAR10 if name == 'cifar10' else datasets.CIFAR100
    folder, key = root / kind.base_folder, 'labels' if name == 'cifar10' else 'fine_labels'
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lists: dict[str, list[list[str]]] = {'train_list': [], 'test_list': []}
    pixels, labels = [], []

    def write(file: str, data: object) -> str:
        (folder / file).write_bytes(pickle.dumps(data))
        return hashlib.md5((folder / file).read_bytes()).hexdigest()

    for which, files in (('train_list', ['data_batch_1', 'data_batch_2']), ('test_list', ['test_batch'])):
        for file in files:
            data, target = rng.integers(0, 256, (6, 3072), dtype=np.uint8), [2, 0, 1, 0, 2, 1]
            lists[which].append([file, write(file, {'data': data, key: target})])
            if which == 'train_list':
                pixels.append(data.reshape(6, 3, 32, 32).transpose(0, 2, 3, 1))
                labels += target
    meta = dict(kind.meta)
    meta['md5'] = write(meta['filename'], {meta['key']: ['ant', 'bee', 'cat']})
    for attribute, value in {**lists, 'meta': meta}.items():
        monkeypatch.setattr(kind, attribute, value)
    small = {'train': (3, 12), 'validation': (3, 6)}
    monkeypatch.setattr(prepare, 'CIFAR10' if name == 'cifar10' else 'CIFAR100', small)
    return np.concatenate(pixels), labels


@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
def test_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str) -> None:
    pixels, labels = raw_cifar(tmp_path / 'raw', monkeypatch, name)
    folder, command = tmp_path / 'images', [name, str(tmp_path / 'images'), '--source', str(tmp_path / 'raw')]
    assert main(command) == 0
    assert '12 images of 3 classes in train/' in capsys.readouterr().out
    train_set, val_set = create_train_val('folder', str(folder))
    assert (len(train_set), len(val_set)) == (12, 6) and list(train_set.reader.class_to_idx) == ['ant', 'bee', 'cat']
    for path, target in train_set.reader.samples:
        i = int(Path(path).stem)
        assert target == labels[i] and np.array_equal(np.asarray(Image.open(path)), pixels[i])
    before = {p: p.stat().st_mtime_ns for p in folder.rglob('*')}
    assert main(command) == 0 and 'was ready' in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob('*')}
    next(folder.rglob('*.png')).unlink()
    assert main(command) == 2
    error = capsys.readouterr().err
    assert 'train/ has 3 classes and 11 images, not 3 and 12' in error and 'remove it and run this again' in error


def test_cifar_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['cifar10', str(tmp_path / 'images'), '--source', str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert 'cifar-10-batches-py/ or cifar-10-python.tar.gz' in error and '--download' in error
    (tmp_path / 'cifar-10-python.tar.gz').write_bytes(b'cut off')  # a damaged archive is not unpacked
    assert not (tmp_path / 'images').exists()


# ----------------------------------------------------------------------------------------------------- TinyImageNet

@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """tiny-imagenet-200 as published, with 3 classes of 4 and 2 images."""
    root = tmp_path / 'tiny-imagenet-200'
    wnids = ['n01443537', 'n01629819', 'n01641577']
    lines = []
    for c, wnid in enumerate(wnids):
        for i in range(4):
            picture(root / 'train' / wnid / 'images' / f'{wnid}_{i}.JPEG', 80 * c)
        (root / 'train' / wnid / f'{wnid}_boxes.txt').write_text(f'{wnid}_0.JPEG\t0\t10\t63\t58\n')
    for i in range(6):
        picture(root / 'val' / 'images' / f'val_{i}.JPEG', 80 * (i % 3))
        lines.append(f'val_{i}.JPEG\t{wnids[i % 3]}\t0\t32\t44\t62')
        picture(root / 'test' / 'images' / f'test_{i}.JPEG', 0)
    (root / 'val' / 'val_annotations.txt').write_text('\n'.join(lines) + '\n')
    (root / 'wnids.txt').write_text('\n'.join(wnids))
    monkeypatch.setattr(prepare, 'TINY_IMAGENET', {'train': (3, 12), 'validation': (3, 6)})
    return root


def zipped(root: Path) -> Path:
    path = root.with_suffix('.zip')
    with zipfile.ZipFile(path, 'w') as archive:
        for p in sorted(root.rglob('*')):
            archive.write(p, p.relative_to(root.parent))
    return path


@pytest.mark.parametrize('packed', [False, True], ids=['folder', 'zip'])
def test_tiny_imagenet(tmp_path: Path, tiny: Path, packed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingError, match="'images' in several folders"):  # why the command is needed
        create_train_val('folder', str(tiny))
    before = contents(tiny)
    source, folder = zipped(tiny) if packed else tiny, tmp_path / 'tiny'
    command = ['tinyimagenet', str(folder), '--source', str(source)]
    assert main(command) == 0, capsys.readouterr().err
    assert contents(tiny) == before and not folder.with_name('.tiny.tmp').exists()
    train_set, val_set = create_train_val('folder', str(folder))
    assert list(train_set.reader.class_to_idx) == ['n01443537', 'n01629819', 'n01641577']
    assert (len(train_set), len(val_set)) == (12, 6)
    for dataset in (train_set, val_set):
        for i in range(len(dataset)):
            image, target = dataset[i]
            assert abs(image.getpixel((3, 3))[0] - 80 * target) < 12
    if not packed:  # takes no space
        assert (folder / 'validation/n01443537/val_0.JPEG').samefile(tiny / 'val/images/val_0.JPEG')
    assert main(command) == 0 and 'was ready' in capsys.readouterr().out


def lose_an_image(root: Path) -> None:
    (root / 'train/n01443537/images/n01443537_2.JPEG').unlink()


def lose_a_class(root: Path) -> None:
    path = root / 'val/val_annotations.txt'
    path.write_text(path.read_text().replace('n01629819', 'n01443537'))


def lose_the_annotations(root: Path) -> None:
    (root / 'val/val_annotations.txt').unlink()


def lose_a_validation_image(root: Path) -> None:
    (root / 'val/images/val_3.JPEG').unlink()


def cut_the_annotations(root: Path) -> None:
    path = root / 'val/val_annotations.txt'
    path.write_text(path.read_text()[:-30])


@pytest.mark.parametrize('breaking, words', [
    (lose_an_image, 'train/ has 3 classes and 11 images, not 3 and 12'),
    (lose_a_class, 'validation/ has 2 classes and 6 images, not 3 and 6'),
    (lose_the_annotations, 'has no val/val_annotations.txt'),
    (lose_a_validation_image, "Line 4 of val/val_annotations.txt .* is 'val_3.JPEG"),
    (cut_the_annotations, 'Line 6 of val/val_annotations.txt'),
])
@pytest.mark.parametrize('packed', [False, True], ids=['folder', 'zip'])
def test_broken_tiny_imagenet(tmp_path: Path, tiny: Path, packed: bool, breaking: object, words: str) -> None:
    breaking(tiny)  # type: ignore[operator]
    with pytest.raises(SettingError, match=words):
        prepare.tiny_imagenet(tmp_path / 'out', zipped(tiny) if packed else tiny)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith('out')) == []  # nothing half made


def test_killed_half_way(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed run leaves is never taken for the whole, and does not stand in the way."""
    (tmp_path / '.out.tmp/train/n01443537').mkdir(parents=True)
    (tmp_path / '.out.tmp/train/stray.JPEG').write_bytes(b'x')
    assert prepare.tiny_imagenet(tmp_path / 'out', tiny)
    assert not list((tmp_path / 'out').rglob('stray*')) and not (tmp_path / '.out.tmp').exists()
    with monkeypatch.context() as m:
        m.setattr(os, 'link', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare.tiny_imagenet(tmp_path / 'again', tiny)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['out', 'tiny-imagenet-200']


def test_other_places(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError('not across file systems')

    monkeypatch.setattr(os, 'link', no_links)
    assert prepare.tiny_imagenet(tmp_path / 'copied', tiny)
    for place, words in ((tiny, 'tiny-imagenet-200 is not whole'), (tmp_path, 'is not whole.*name another folder')):
        with pytest.raises(SettingError, match=words):
            prepare.tiny_imagenet(place, tiny)
    with pytest.raises(SettingError, match='no such folder or zip'):
        prepare.tiny_imagenet(tmp_path / 'x', tmp_path / 'nowhere')
    (tmp_path / 'file').touch()
    with pytest.raises(SettingError, match='cannot be written'):
        prepare.tiny_imagenet(tmp_path / 'file' / 'x', tiny)


# --------------------------------------------------------------------------------------------------------- ImageNet

@pytest.fixture
def imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Archives as published, with 2 classes of 3 and 2 images, and a torchvision that takes their checksums."""
    scipy_io = pytest.importorskip('scipy.io')
    root, work = tmp_path / 'imagenet', tmp_path / 'work'
    root.mkdir()
    wnids = ['n01440764', 'n01443537']
    for wnid in wnids:
        for i in range(3):
            picture(work / wnid / f'{wnid}_{i}.JPEG', 0)
        with tarfile.open(work / f'{wnid}.tar', 'w') as tar:
            for p in sorted((work / wnid).iterdir()):
                tar.add(p, p.name)
    with tarfile.open(root / 'ILSVRC2012_img_train.tar', 'w') as tar:
        for wnid in wnids:
            tar.add(work / f'{wnid}.tar', f'{wnid}.tar')
    with tarfile.open(root / 'ILSVRC2012_img_val.tar', 'w') as tar:
        for i in range(4):
            picture(work / f'ILSVRC2012_val_{i:08d}.JPEG', 255 * (i % 2))
            tar.add(work / f'ILSVRC2012_val_{i:08d}.JPEG', f'ILSVRC2012_val_{i:08d}.JPEG')
    kit = work / 'ILSVRC2012_devkit_t12' / 'data'
    kit.mkdir(parents=True)
    synsets = np.array([(i + 1, wnid, wnid, '', 0) for i, wnid in enumerate(wnids)],
                       dtype=[(k, object) for k in ('ILSVRC2012_ID', 'WNID', 'words', 'gloss', 'num_children')])
    scipy_io.savemat(kit / 'meta.mat', {'synsets': synsets})
    (kit / 'ILSVRC2012_validation_ground_truth.txt').write_text('1\n2\n1\n2\n')
    with tarfile.open(root / 'ILSVRC2012_devkit_t12.tar.gz', 'w:gz') as tar:
        tar.add(work / 'ILSVRC2012_devkit_t12', 'ILSVRC2012_devkit_t12')
    for part, (file, _) in dict(archives.ARCHIVE_META).items():
        checksum = hashlib.md5((root / file).read_bytes()).hexdigest()
        monkeypatch.setitem(archives.ARCHIVE_META, part, (file, checksum))
    monkeypatch.setattr(prepare, 'IMAGENET', {'train': (2, 6), 'val': (2, 4)})
    return root


def test_imagenet(imagenet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['imagenet', str(imagenet)]) == 0, capsys.readouterr().err
    train_set, val_set = create_train_val('', str(imagenet))  # timm finds val/ under the name of validation
    assert (len(train_set), len(val_set)) == (6, 4)
    assert all((val_set[i][0].getpixel((3, 3))[0] > 128) == val_set[i][1] for i in range(4))
    for archive in imagenet.glob('*.tar*'):
        archive.unlink()
    assert main(['imagenet', str(imagenet)]) == 0 and 'was ready' in capsys.readouterr().out
    next((imagenet / 'val').rglob('*.JPEG')).unlink()
    assert main(['imagenet', str(imagenet)]) == 2
    assert 'val/ has 2 classes and 3 images, not 2 and 4' in capsys.readouterr().err


def test_imagenet_without_or_with_broken_archives(imagenet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (imagenet / 'ILSVRC2012_img_val.tar').write_bytes(b'cut off')
    assert main(['imagenet', str(imagenet)]) == 2
    assert 'val cannot be unpacked' in capsys.readouterr().err
    assert sorted(p.name for p in imagenet.iterdir() if p.is_dir()) == ['train']  # whole, and kept
    (imagenet / 'ILSVRC2012_img_val.tar').unlink()
    assert main(['imagenet', str(imagenet)]) == 2
    assert 'has no val/, and ILSVRC2012_img_val.tar' in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------- augmentation

def test_crops_of_padded_images() -> None:
    """Every crop is the image shifted by at most 4 pixels with black moving in, and all 81 places occur."""
    image = torch.arange(1, 8 * 8 + 1, dtype=torch.uint8).view(8, 8)
    transform = create_transform((3, 8, 8), is_training=True, hflip=0.0, color_jitter=0.0, use_prefetcher=True)
    as_published(transform, (8, 8), crop_pad=4)
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
    places = {padded[i:i + 8, j:j + 8].numpy().tobytes(): (i, j) for i in range(9) for j in range(9)}
    seen = set()
    for _ in range(1500):
        crop = torch.as_tensor(transform(Image.fromarray(image.numpy()).convert('RGB')))
        seen.add(places[crop[0].numpy().tobytes()])
    assert len(seen) == 81


def test_lighting_has_the_covariance_of_imagenets_colours() -> None:
    transform = create_transform((3, 4, 4), is_training=True, hflip=0.0, color_jitter=0.0)
    as_published(transform, (4, 4), crop_pad=0, pca_lighting=0.1)
    transform.transforms.pop()  # without normalisation
    grey = Image.new('RGB', (4, 4), (128, 128, 128))
    shifts = torch.stack([transform(grey)[:, 0, 0] for _ in range(4000)]).double() - 128 / 255
    values = torch.tensor([0.2175, 0.0188, 0.0045]).double()
    vectors = torch.tensor([[-.5675, .7192, .4009], [-.5808, -.0045, -.8140], [-.5836, -.6948, .4203]]).double()
    assert torch.allclose(vectors @ vectors.T, torch.eye(3).double(), atol=1e-3)
    want = vectors @ torch.diag((0.1 * values) ** 2) @ vectors.T
    assert torch.allclose(shifts.T.cov(), want, atol=0.15 * want.max(), rtol=0)
    assert transform(Image.new('RGB', (4, 4), (255, 255, 255))).max() <= 1


def test_flags_reach_the_training_images_alone(image_folder: Path) -> None:
    args = parse_args(['--data-dir', str(image_folder), '--train-crop-pad', '4', '--pca-lighting', '0.1', '-j', '0',
                       '-b', '4'])
    data = {'input_size': (3, 32, 32), 'mean': (0.5,) * 3, 'std': (0.5,) * 3, 'interpolation': 'bicubic',
            'crop_pct': 1.0, 'crop_mode': 'center'}
    sets = create_train_val('', str(image_folder))
    load_images(args, *sets, None, data, torch.device('cpu'))
    a, b = ([type(t).__name__ for t in s.transform.then.transforms] for s in sets)
    assert a == ['Resize', 'RandomCrop', 'RandomHorizontalFlip', 'ColorJitter', 'PCALighting', 'MaybeToTensor',
                 'Normalize']
    assert b == ['Resize', 'CenterCrop', 'MaybeToTensor', 'Normalize']


def test_augmentation_that_has_no_place(image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingError, match='RGB images, but these are L'):
        transform = create_transform((1, 8, 8), is_training=True, mean=(0.5,), std=(0.5,))
        as_published(transform, (8, 8), pca_lighting=0.1)
        transform(Image.new('L', (8, 8)))
    with pytest.raises(SettingError, match='in for random resized crops'):
        as_published(transforms.Compose([]), (8, 8), crop_pad=4)
    flags = ['--data-dir', str(image_folder), '--model', 'test_resnet', '--train-crop-pad', '4']
    for more, words in ((['--no-aug'], '--no-aug crops in another way'),
                        (['--train-crop-mode', 'rkrc'], '--train-crop-mode rkrc crops in another way'),
                        (['--pca-lighting', '-1'], '--pca-lighting is -1')):
        assert train.main([*flags, *more]) == 2
        assert words in capsys.readouterr().err
