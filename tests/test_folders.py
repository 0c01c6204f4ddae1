"""Folders of real life: what timm would misread is skipped, told or refused, and what was understood is shown."""
from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import ExifTags, Image

import evaluate
import train
from tests.conftest import write_images
from timm_multimix import SettingError
from timm_multimix.data import class_weights, create_train_val, describe_images
from timm_multimix.data.factory import class_names
from timm_multimix.evaluate.images import open_split, prepared
from timm_multimix.evaluate.load import load_checkpoint
from timm_multimix.runs.summary import read_summary

SMALL = ('--model', 'test_resnet', '--epochs', '1', '-j', '0', '--img-size', '32', '-b', '6', '--warmup-epochs', '0')


def test_hidden_folders_are_no_classes(
        image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ('train', 'validation'):
        for hidden in ('.ipynb_checkpoints', 'class_1/.thumbnails'):
            shutil.copytree(image_folder / split / 'class_0', image_folder / split / hidden)
    assert train.main([*SMALL, '--data-dir', str(image_folder), '--output', str(tmp_path), '--experiment', 'x']) == 0
    out = capsys.readouterr().out
    assert "12 hidden images of 'train' are left out, in .ipynb_checkpoints, class_1/.thumbnails." in out
    assert 'Found 3 classes: class_0 6, class_1 6, class_2 6. Of 18 looked at: RGB, 32×32 pixels.' in out
    config = yaml.safe_load((tmp_path / 'x' / 'model' / 'config.json').read_text())
    assert config['label_names'] == ['class_0', 'class_1', 'class_2'] and config['num_classes'] == 3
    evaluated = open_split('', str(image_folder), 'validation')
    assert class_names(evaluated) == ['class_0', 'class_1', 'class_2'] and len(evaluated) == 18
    assert [target for _, target in evaluated.reader.samples] == [0] * 6 + [1] * 6 + [2] * 6


def test_types_of_files(image_folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    images = sorted((image_folder / 'train' / 'class_0').glob('*.png'))
    for image, suffix in zip(images, ('.webp', '.bmp', '.gif', '.tif', '.jfif', '.JPG')):
        Image.open(image).convert('RGB').save(image.with_suffix(suffix), format='JPEG' if suffix == '.jfif' else None)
        image.unlink()
    (image_folder / 'train' / 'class_0' / 'notes.txt').write_text('no image')
    (image_folder / 'train' / 'class_1' / '._a.png').write_bytes(b'of a Mac')
    for path in ('class_2/a.heic', 'class_2/b.HEIC', 'phone/c.dng'):
        (image_folder / 'train' / path).parent.mkdir(exist_ok=True)
        (image_folder / 'train' / path).write_bytes(b'of a phone')
    (image_folder / 'train' / '.cache').mkdir()
    train_set, _ = create_train_val('', str(image_folder))
    assert describe_images(train_set, ['a', 'b', 'c']).startswith('Found 3 classes: a 6, b 6, c 6.')  # type: ignore[union-attr]
    assert len(open_split('', str(image_folder), 'train')) == 18
    assert [str(w.message) for w in recwarn] == [
        "1 hidden images of 'train' are left out, in class_1.",
        "Files left out of 'train', since their type is not read: 1 .dng, 2 .heic. Save them as JPEG or PNG. "
        "1 folder of 'train' holds no image and is no class: phone."]


def test_photographs_of_a_phone_alone_are_named(tmp_path: Path) -> None:
    for split in ('', 'train'):
        (tmp_path / 'photos' / split / 'cat').mkdir(parents=True)
        (tmp_path / 'photos' / split / 'cat' / 'a.HEIC').write_bytes(b'of a phone')
        with pytest.raises(SettingError, match=r'holds no image of a type that is read \(.png, .*Files left out of '
                                               r"'train', since their type is not read: 1 .heic. Save them as JPEG"):
            create_train_val('', str(tmp_path / 'photos'))
        shutil.rmtree(tmp_path / 'photos')


def test_a_run_among_the_images_is_no_class(image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused; one that an older version left there is passed over. Beside the splits is not among them."""
    command = [*SMALL, '--experiment', 'x', '--data-dir']
    whole = image_folder / 'train'
    for folder in (image_folder, whole):
        output = whole / 'runs'
        assert train.main([*command, str(folder), '--output', str(output)]) == 2
        assert f"--output is '{output}', which lies among the images of {whole}: " in capsys.readouterr().err
        assert not output.exists()
    assert train.main([*command, str(image_folder), '--output', str(image_folder / 'runs')]) == 0
    shutil.move(image_folder / 'runs', whole / 'runs')
    Image.new('RGB', (32, 32)).save(whole / 'runs' / 'x' / 'curves.png')
    assert (whole / 'runs' / 'x' / 'args.yaml').exists()
    with pytest.warns(UserWarning, match="1 images of 'train' that are hidden or a run's are left out, in runs/x."):
        data, _ = create_train_val('', str(whole))
    assert class_names(data) == ['class_0', 'class_1', 'class_2']


def test_a_class_of_one_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_images(tmp_path / 'images')
    for image in sorted((root / 'train' / 'class_1').glob('*.png'))[1:]:
        image.unlink()
    assert train.main([*SMALL, '--data-dir', str(root / 'train'), '--output', str(tmp_path), '--class-weight', 'auto',
                       '--experiment', 'x']) == 0
    out = capsys.readouterr().out
    assert 'Warning: 1 of 3 classes have one image each, which trains: nothing validates class_1.' in out
    assert 'Class weights: from 0.733 of class_0 to 3.67 of class_1.' in out  # of 5, 1 and 5
    assert re.search(r'val loss .*, top-1 [\d.]+ %, mean over classes [\d.]+ %;', out)
    row = read_summary(tmp_path / 'x' / 'summary.csv')[-1]
    assert (row['train_smallest_class'], row['train_largest_class']) == ('1', '5')
    assert row['eval_balanced'] == row['eval_top1']  # of one image of two classes


def test_images_both_in_a_folder_and_in_one_within_it_are_refused(image_folder: Path) -> None:
    inner = image_folder / 'train' / 'class_1' / 'more'
    inner.mkdir()
    (inner.parent / '0.png').rename(inner / '0.png')
    with pytest.raises(SettingError, match='images in class_1 and in class_1/more, and timm would make two classes'):
        create_train_val('', str(image_folder))


def test_one_name_below_several_classes_is_refused(image_folder: Path, tmp_path: Path) -> None:
    for split in ('train', 'validation'):
        for c in range(3):
            folder = image_folder / split / f'class_{c}'
            for time in ('day', 'night'):
                (folder / time).mkdir()
            for i, image in enumerate(sorted(folder.glob('*.png'))):
                image.rename(folder / ('day', 'night')[i % 2] / image.name)
    words = "has 'day' in several folders, class_0/day and class_1/day.*--class-map"
    with pytest.raises(SettingError, match=words):
        create_train_val('', str(image_folder))
    with pytest.raises(SettingError, match=words):
        open_split('', str(image_folder), 'validation')
    named = tmp_path / 'map.txt'
    named.write_text('day\nnight\n')
    data, _ = create_train_val('', str(image_folder), class_map=str(named))
    assert class_names(data) == ['day', 'night'] and len(data) == 18
    for split in ('train', 'validation'):  # a name to each class is what timm has always read
        for c in range(3):
            shutil.rmtree(image_folder / split / f'class_{c}' / 'night')
            (image_folder / split / f'class_{c}' / 'day').rename(image_folder / split / f'class_{c}' / f'kind_{c}')
    assert class_names(create_train_val('', str(image_folder))[0]) == ['kind_0', 'kind_1', 'kind_2']


def test_links_in_a_circle_and_pipes_are_refused(image_folder: Path) -> None:
    link = image_folder / 'train' / 'class_0' / 'again'
    link.symlink_to(image_folder / 'train', target_is_directory=True)
    with pytest.raises(SettingError, match='again is a link to .*train, a folder that it lies in.*Remove the link'):
        create_train_val('', str(image_folder))
    link.unlink()
    link.with_name('linked.png').symlink_to(image_folder / 'train' / 'class_0' / '0.png')  # a link to a file is fine
    assert len(create_train_val('', str(image_folder))[0]) == 19
    os.mkfifo(image_folder / 'validation' / 'class_2' / 'pipe.jpg')
    with pytest.raises(SettingError, match='pipe.jpg is no file .but a pipe'):
        create_train_val('', str(image_folder))


def test_images_outside_of_class_folders_are_refused(image_folder: Path) -> None:
    shutil.copy(image_folder / 'train' / 'class_0' / '0.png', image_folder / 'train' / 'lost.png')
    with pytest.raises(SettingError, match='lost.png lies in no folder of a class.*train/CLASS'):
        create_train_val('', str(image_folder))


def test_a_class_map_that_lacks_a_class_says_what_it_leaves_out(image_folder: Path, tmp_path: Path) -> None:
    named = tmp_path / 'map.txt'
    named.write_text('class_2\nclass_0\n')
    with pytest.warns(UserWarning, match=r'lacks 1 of the folders, whose 6 images are left out: class_1 \(6\)'):
        data, _ = create_train_val('', str(image_folder), class_map=str(named))
    assert class_names(data) == ['class_2', 'class_0'] and len(data) == 12
    with pytest.raises(SettingError, match='a pickle, which can run any code'):
        create_train_val('', str(image_folder), class_map='map.pkl')


@pytest.mark.parametrize('kind', ['PNG', 'TIFF'])
def test_grey_images_of_16_bits_are_those_of_8(image_folder: Path, tmp_path: Path, kind: str) -> None:
    """To the bit, in training and in evaluation: PIL alone would make them white."""
    deep = tmp_path / 'deep'
    for path in image_folder.rglob('*.png'):
        grey = np.asarray(Image.open(path).convert('L'))
        Image.fromarray(grey).save(path)
        there = deep / path.relative_to(image_folder)
        there.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey.astype(np.uint16) * 257).save(there, kind)
    for folder, name in ((image_folder, 'shallow'), (deep, 'deep')):
        assert train.main([*SMALL, '--data-dir', str(folder), '--output', str(tmp_path), '--experiment', name]) == 0
    rows = [read_summary(tmp_path / name / 'summary.csv')[0] for name in ('shallow', 'deep')]
    assert all(rows[0][k] == rows[1][k] for k in ('train_loss', 'eval_loss', 'eval_top1'))
    checkpoint = load_checkpoint(str(tmp_path / 'deep'))
    shown = [prepared(open_split('', str(folder), 'validation'), checkpoint, None, 0)
             for folder in (image_folder, deep)]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(*shown))
    assert float(shown[1][0][0].std()) > 0.05


def test_images_of_no_known_range_and_modes_that_cannot_be_are_refused(
        image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.zeros((32, 32), np.float32)).save(image_folder / 'train' / 'class_1' / 'float.png', 'TIFF')
    assert train.main([*SMALL, '--data-dir', str(image_folder), '--output', str(tmp_path)]) == 2
    assert 'float.png: it is of mode F (floats)' in capsys.readouterr().err
    for mode in ('I;16', 'I', 'F', 'P', 'nonsense'):
        with pytest.raises(SystemExit):
            train.main([*SMALL, '--data-dir', str(image_folder), '--input-img-mode', mode])
        assert f'--input-img-mode: invalid choice: {mode!r}' in capsys.readouterr().err


def test_what_is_found_is_said(image_folder: Path) -> None:
    Image.new('L', (40, 50)).save(image_folder / 'train' / 'class_1' / '0.png')
    data, _ = create_train_val('', str(image_folder))
    told = describe_images(data, class_names(data))
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    assert told == ('Found 3 classes: class_0 6, class_1 6, class_2 6. Of 18 looked at: RGB, L, 32×32 to 40×50 pixels.')
    Image.new('RGB', (32, 32)).save(image_folder / 'train' / 'class_1' / '1.png', exif=turned)
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(image_folder / 'train' / 'class_1' / '2.png')
    told = describe_images(data, class_names(data))
    assert told is not None and '1 of them are to be turned' in told and 'Grey images of 16 bits are scaled' in told
    for split in ('train', 'validation'):
        for c in range(3, 12):
            shutil.copytree(image_folder / split / 'class_0', image_folder / split / f'class_{c}')
    (image_folder / 'train' / 'class_11' / '0.png').unlink()
    data, _ = create_train_val('', str(image_folder))
    assert describe_images(data, class_names(data)).startswith(  # type: ignore[union-attr]
        'Found 12 classes: class_0 to class_11, of 5 to 6 images.')
    assert describe_images(create_train_val('sklearn/digits', None)[0], None) is None


@pytest.mark.parametrize('names, text', [
    (('0', '1', '2'), '0: 1.0\n1: 2.0\n2: 3.0\n'), (('maybe', 'no', 'yes'), 'no: 2\nyes: 3\nmaybe: 1\n'),
    (('0', '1', '2'), '[1, 2, 3]'), (('0', '1', '2'), '1, 2\n3')])
def test_class_weights_of_names_that_yaml_reads_as_something_else(
        names: tuple[str, ...], text: str, image_folder: Path, tmp_path: Path) -> None:
    for split in ('train', 'validation'):
        for i, name in enumerate(names):
            (image_folder / split / f'class_{i}').rename(image_folder / split / name)
    (tmp_path / 'weights').write_text(text)
    assert class_weights(str(tmp_path / 'weights'), create_train_val('', str(image_folder))[0], 3) == (1, 2, 3)


def test_evaluate_leaves_out_what_cannot_be_read_and_says_so(
        image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*SMALL, '--data-dir', str(image_folder), '--output', str(tmp_path), '--experiment', 'x']) == 0
    broken = next((image_folder / 'validation' / 'class_1').glob('*.png'))
    broken.write_bytes(broken.read_bytes()[:40])
    count = len(list((image_folder / 'validation').rglob('*.png')))
    assert evaluate.main([str(tmp_path / 'x'), '--data-dir', str(image_folder), '--on', 'accuracy', '-j', '0',
                          '--output', str(tmp_path / 'e')]) == 0
    report = (tmp_path / 'e' / 'report.md').read_text()
    for text in (capsys.readouterr().out, report):
        assert f"1 of {count} images in 'validation' cannot be read and are left out" in text and broken.name in text
    assert f'{count - 1} of {image_folder}, split validation' in report
