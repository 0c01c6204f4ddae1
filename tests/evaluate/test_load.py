"""Every way a checkpoint comes gives the same model; images and masks are prepared alike."""
from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images

from tests.conftest import ROOT, write_images
from timm_multimix import SettingError
from timm_multimix.evaluate import load_checkpoint
from timm_multimix.evaluate.estimate import measure
from timm_multimix.evaluate.images import (
    ImageLoader,
    Noise,
    PhotographCrops,
    WithMasks,
    _above_zero,
    boxes_as_mask,
    check_classes,
    open_split,
    outliers,
    prepared,
)
from timm_multimix.evaluate.load import split_name, unique_names
from timm_multimix.hub import save_plain

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
DATA = {'input_size': (3, 32, 32), 'mean': (0.1, 0.2, 0.3), 'std': (0.4, 0.5, 0.6), 'interpolation': 'bilinear',
        'crop_pct': 1.0, 'crop_mode': 'center'}


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as train.py leaves it: model/, and the weights in timm's form of a checkpoint."""
    folder = tmp_path_factory.mktemp('runs') / 'mine'
    folder.mkdir()
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=3, output_stride=8).eval()
    save_plain(model, folder / 'model', DATA, {'output_stride': 8}, ['class_0', 'class_1', 'class_2'])
    torch.save({'state_dict': model.state_dict(), 'epoch': 3, 'arch': 'test_resnet'}, folder / 'last.pth.tar')
    save_file(model.state_dict(), folder / 'bare.safetensors')
    return folder


def logits(checkpoint: Any) -> torch.Tensor:
    with torch.no_grad():
        return checkpoint.model(X)


def test_every_way_gives_the_same_model(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_checkpoint(str(run))
    assert first.name == 'mine' and not first.model.training
    assert first.label_names == ['class_0', 'class_1', 'class_2']
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in first.data_config.items()} == DATA
    for source in (f'{run}/model', f'local-dir:{run}/model', f'{run}/model/model.safetensors', f'x={run}'):
        assert torch.equal(logits(load_checkpoint(source)), logits(first)), source
    for source in (f'{run}/bare.safetensors', f'{run}/last.pth.tar'):
        found = load_checkpoint(source, 'test_resnet', model_kwargs={'output_stride': 8})
        assert torch.equal(logits(found), logits(first)), source

    def download(repo_id: str, filename: str, **_: Any) -> str:
        assert repo_id == 'someone/model'
        return str(run / 'model' / filename)
    monkeypatch.setattr('timm.models._hub.hf_hub_download', download)
    hub = load_checkpoint('hf-hub:someone/model')
    assert torch.equal(logits(hub), logits(first)) and hub.name == 'model'


def test_settings_of_the_images_may_be_overridden(run: Path) -> None:
    found = load_checkpoint(str(run), img_size=48, mean=[0.5, 0.5, 0.5], crop_pct=0.9)
    assert found.data_config['input_size'] == (3, 48, 48) and found.data_config['crop_pct'] == 0.9
    assert tuple(found.data_config['mean']) == (0.5,) * 3 and tuple(found.data_config['std']) == DATA['std']


def test_a_file_of_a_run_says_how_its_images_are_prepared(run: Path, tmp_path: Path) -> None:
    said = {'img_size': 48, 'mean': [0.1, 0.2, 0.3], 'std': [0.4, 0.5, 0.6], 'crop_pct': 0.9,
            'interpolation': 'bilinear', 'input_img_mode': 'HSV', 'multimix': None}
    state = torch.load(run / 'last.pth.tar', weights_only=True)
    options: dict[str, Any] = {'model': 'test_resnet', 'model_kwargs': {'output_stride': 8}, 'usual_size': 32}
    for args in (said, argparse.Namespace(**said)):  # timm's own train.py saves the latter
        torch.save({**state, 'args': args}, tmp_path / 'last.pth.tar')
        found = load_checkpoint(str(tmp_path / 'last.pth.tar'), **options)
        assert found.data_config == {'input_size': (3, 48, 48), 'mean': (0.1, 0.2, 0.3), 'std': (0.4, 0.5, 0.6),
                                     'interpolation': 'bilinear', 'crop_pct': 0.9, 'crop_mode': 'center'}
        assert found.input_img_mode == 'HSV'
        other = load_checkpoint(str(tmp_path / 'last.pth.tar'), **options, img_size=64, mean=[0.5])
        assert other.data_config['input_size'] == (3, 64, 64)  # what is given goes first
        assert other.data_config['mean'] == (0.5,) * 3 and other.data_config['std'] == (0.4, 0.5, 0.6)
    torch.save({**state, 'args': {**said, 'input_size': [3, 40, 56]}}, tmp_path / 'last.pth.tar')
    assert load_checkpoint(str(tmp_path / 'last.pth.tar'), **options).data_config['input_size'] == (3, 40, 56)
    assert load_checkpoint(str(run / 'bare.safetensors'), **options).data_config['input_size'] == (3, 32, 32)
    vit = timm.create_model('test_vit', num_classes=3, img_size=64).eval()  # its positions are of this size
    torch.save({'state_dict': vit.state_dict(), 'args': {'img_size': 64}}, tmp_path / 'vit.pth.tar')
    found = load_checkpoint(str(tmp_path / 'vit.pth.tar'), 'test_vit', usual_size=32)
    images = torch.rand(2, *found.data_config['input_size'])
    torch.testing.assert_close(found.model(images), vit(images))


def test_a_transformer_takes_images_of_another_size(tmp_path: Path) -> None:
    options = {'depth': 1, 'img_size': 64}
    model = timm.create_model('deit_tiny_patch16_224', num_classes=3, **options)  # test_vit takes all sizes as it is
    save_plain(model, tmp_path / 'm', model_args=options)
    found = load_checkpoint(str(tmp_path / 'm'), img_size=96)
    assert found.data_config['input_size'] == (3, 96, 96)
    assert found.model(torch.rand(2, 3, 96, 96)).shape == (2, 3)


def test_numbers_of_the_wrong_length_say_so(run: Path) -> None:
    for name in ('mean', 'std'):
        with pytest.raises(SettingError, match=f'--{name} has 2 numbers, but the images of .* have 3 channels'):
            load_checkpoint(str(run), **{name: [0.5, 0.5]})


def test_the_weights_of_a_distilled_model_say_how_many_classes_it_has(tmp_path: Path) -> None:
    name, options = 'deit_tiny_distilled_patch16_224', {'depth': 1, 'img_size': 32}
    save_file(timm.create_model(name, num_classes=3, **options).state_dict(), tmp_path / 'w.safetensors')
    found = load_checkpoint(str(tmp_path / 'w.safetensors'), name, model_kwargs=options)
    assert found.model.num_classes == 3


def test_a_model_that_came_along_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = 'test_efficientnet_digits'
    found, by_folder = load_checkpoint(name), load_checkpoint(str(ROOT / 'checkpoints' / name))
    assert found.name == name and found.label_names == by_folder.label_names
    assert found.data_config == by_folder.data_config and torch.equal(logits(found), logits(by_folder))


def test_names() -> None:
    assert split_name('plain=output/train/a/') == ('plain', 'output/train/a/')
    assert split_name('output/train/a/model')[0] == split_name('local-dir:output/train/a/model')[0] == 'a'
    assert split_name('output/train/a/last.pth.tar')[0] == 'a'
    assert split_name('hf-hub:timm/resnet50.a1_in1k') == ('resnet50.a1_in1k', 'hf-hub:timm/resnet50.a1_in1k')
    assert split_name('resnet50')[0] == 'resnet50'
    assert split_name('dir/x=y')[1] == 'dir/x=y'
    assert unique_names(['a', 'b', 'a']) == ['a', 'b', 'a (2)']
    assert unique_names(['a', 'a', 'a (2)', 'a']) == ['a', 'a (3)', 'a (2)', 'a (4)']


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return open, ('pwned', 'w')


def test_what_is_no_checkpoint_says_so(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    unfinished = tmp_path / 'unfinished'
    unfinished.mkdir()
    shutil.copy(run / 'last.pth.tar', unfinished)
    (tmp_path / 'junk.safetensors').write_bytes(b'junk')
    torch.save({'state_dict': {'x': Evil()}}, tmp_path / 'evil.pth')
    for source, kwargs, says in (
            ('nowhere/x', {}, 'no such folder or file'), ('unfinishd', {}, 'Did you mean unfinished'),
            ('unfinished', {}, 'That run was not finished'), (str(run / 'bare.safetensors'), {}, 'give --model'),
            (str(run / 'bare.safetensors'), {'model': 'test_resnt'}, 'Did you mean test_resnet'),
            (str(run / 'bare.safetensors'), {'model': 'test_vit'}, 'does not fit --model test_vit'),
            ('junk.safetensors', {'model': 'test_resnet'}, 'cannot be read as weights'),
            ('evil.pth', {'model': 'test_resnet'}, r'more than weights \(.*it is not opened'),
            ('local-dir:nowhere', {}, 'cannot be loaded')):
        with pytest.raises(SettingError, match=says):
            load_checkpoint(source, **kwargs)
    assert not (tmp_path / 'pwned').exists()


def test_images_are_those_of_timm_in_one_order(run: Path, tmp_path: Path) -> None:
    c = load_checkpoint(str(run))
    data = write_images(tmp_path / 'images')
    dataset = open_split('', str(data), 'validation')
    subset = prepared(dataset, c, 7, seed=3)
    assert len(subset) == 7 and [subset[i][1] for i in range(7)] == [prepared(dataset, c, 7, 3)[i][1] for i in range(7)]
    image, target = subset[0]
    path = data / 'validation' / str(dataset.filename(subset.indices[0]))
    pixels = torch.tensor(np.asarray(Image.open(path))).permute(2, 0, 1) / 255
    expected = (pixels - torch.tensor(DATA['mean']).view(3, 1, 1)) / torch.tensor(DATA['std']).view(3, 1, 1)
    torch.testing.assert_close(image, expected)
    assert path.parent.name == f'class_{target}'
    assert len(open_split('', str(data / 'validation'), 'validation')) == 18  # the class folders themselves
    assert len(open_split('sklearn/digits', None, 'validation')) == 355
    assert check_classes(c, dataset) == ['class_0', 'class_1', 'class_2']


def test_wrong_images_say_so(run: Path, tmp_path: Path) -> None:
    c = load_checkpoint(str(run))
    wide = replace(c, model=timm.create_model('test_resnet', num_classes=10))
    data = write_images(tmp_path / 'images')
    for root, split, says in ((data, 'test', "no 'test' folder. It holds train, validation"),
                              (tmp_path / 'image', 'validation', 'Did you mean images'),
                              (None, 'validation', 'no such folder')):
        with pytest.raises(SettingError, match=says):
            open_split('', str(root) if root else None, split)
    more = write_images(tmp_path / 'more', classes=4)
    with pytest.raises(SettingError, match='3 classes, but the images have 4'):
        check_classes(c, open_split('', str(more), 'validation'))
    with pytest.raises(SettingError, match='class_0, class_1, class_2.*not trained on the embedded digits'):
        check_classes(wide, open_split('sklearn/digits', None, 'validation'))
    with pytest.raises(SettingError, match="Class 1 is 'class_1' in .* but 'class_2' in the data: give --class-map"):
        check_classes(c, SimpleNamespace(classes=['class_0', 'class_2']))
    assert check_classes(wide, SimpleNamespace(classes=['class_0', 'class_1']))[:3] == ['class_0', 'class_1', '2']
    with pytest.warns(UserWarning, match='not one name is the same'):
        check_classes(wide, SimpleNamespace(classes=['cat', 'dog']))
    with pytest.warns(UserWarning, match='has 10 classes and does not say their names. The images have 2, .*cat, dog'):
        check_classes(replace(wide, label_names=None), SimpleNamespace(classes=['cat', 'dog']))
    (tmp_path / 'map.txt').write_text('class_0\nclass_2\nclass_1\n')
    with pytest.raises(SettingError, match="Class 1 is 'class_1' in mine but 'class_2'"):
        check_classes(c, open_split('', str(data), 'validation', str(tmp_path / 'map.txt')))


def test_outliers(run: Path, tmp_path: Path) -> None:
    c = load_checkpoint(str(run))
    flat = tmp_path / 'flat'
    flat.mkdir()
    for path in (write_images(tmp_path / 'images') / 'validation' / 'class_0').iterdir():
        shutil.copy(path, flat)
    found = outliers(['uniform', 'gaussian', 'digits', 'photographs', str(flat)], c, 40, seed=1)
    assert {k: len(v) for k, v in found.items()} == {
        'uniform': 40, 'gaussian': 40, 'digits': 40, 'photographs': 40, 'flat': 6}
    again, other = (outliers(['uniform', 'photographs'], c, 40, seed) for seed in (1, 2))
    for name, dataset in found.items():
        image = dataset[3][0]
        assert image.shape == (3, 32, 32)
        if name in again:
            assert torch.equal(image, again[name][3][0]) and not torch.equal(image, other[name][3][0])
    mean, std = (torch.tensor(DATA[k]).view(3, 1, 1) for k in ('mean', 'std'))
    pixels = {k: torch.stack([Noise(k, c, 50, 0)[i][0] for i in range(50)]) * std + mean
              for k in ('uniform', 'gaussian')}
    assert pixels['uniform'].mean() == pytest.approx(1 / 2, abs=0.01)
    assert pixels['uniform'].var() == pytest.approx(1 / 12, abs=0.01)
    at_ends = ((pixels['gaussian'] < 1e-6) | (pixels['gaussian'] > 1 - 1e-6)).float().mean()
    assert at_ends == pytest.approx(2 * 0.3085, abs=0.01)  # of N(½, 1), what lies outside [0, 1]
    crop = PhotographCrops(c, 5, 0)[2][0] * std + mean
    assert 0 <= crop.min() < crop.max() <= 1 and len(load_sample_images().images) == 2
    with pytest.raises(SettingError, match="'unifrom', but.*Did you mean uniform"):
        outliers(['unifrom'], c, 4, 0)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(SettingError, match='holds no images'):
        outliers([str(tmp_path / 'empty')], c, 4, 0)


def test_folders_of_outliers_are_read_whole_and_replace_no_set(run: Path, tmp_path: Path) -> None:
    c = load_checkpoint(str(run))
    folder = tmp_path / 'digits'
    folder.mkdir()
    for suffix in ('png', 'webp', 'jpg', 'bmp', 'tiff'):
        Image.new('RGB', (40, 40), 'red').save(folder / f'a.{suffix}')
    found = outliers(['digits', str(folder), 'uniform'], c, 40, seed=0)
    assert {name: len(images) for name, images in found.items()} == {'digits': 40, str(folder): 5, 'uniform': 40}
    assert list(outliers([str(folder), 'digits'], c, 40, seed=0)) == [str(folder), 'digits']


def masked_folder(folder: Path) -> tuple[Path, Path]:
    """Images of 60×40 that are white exactly where their masks are, black elsewhere; one of three by its box."""
    images, masks = folder / 'images' / 'validation', folder / 'masks'
    for c in range(3):
        (images / f'class_{c}').mkdir(parents=True)
        (masks / f'class_{c}').mkdir(parents=True)
        pixels = np.zeros((40, 60), np.uint8)
        pixels[8:24, 24 + 4 * c:44] = 255
        Image.fromarray(pixels).save(images / f'class_{c}' / 'a.png')
        if c < 2:
            Image.fromarray((pixels > 0).astype('uint8')).save(masks / f'class_{c}' / 'a.png')
        else:
            (masks / f'class_{c}' / 'a.xml').write_text(
                '<annotation><size><width>60</width><height>40</height></size><object><bndbox><xmin>33</xmin>'
                '<ymin>9</ymin><xmax>44</xmax><ymax>24</ymax></bndbox></object></annotation>')
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(images / 'class_0' / 'without.png')
    return folder / 'images', masks


def test_masks_go_the_way_of_their_images(run: Path, tmp_path: Path) -> None:
    c = load_checkpoint(str(run), crop_pct=0.8)
    data, masks = masked_folder(tmp_path)
    found = WithMasks(open_split('', str(data), 'validation'), str(masks), c, None, seed=0)
    assert len(found) == 3  # the image without a mask is left out
    for i in range(3):
        image, target, mask = found[i]
        assert mask.shape == (32, 32) and mask.dtype == torch.bool and 0 < mask.sum() < 900
        bright = image.mean(0) > (image.min() + image.max()).mean() / 2
        assert float((bright != mask).float().mean()) < 0.03, target  # they differ at resampled edges only
    with pytest.raises(SettingError, match='no mask of any image'):
        WithMasks(open_split('', str(data), 'validation'), str(tmp_path), c, None, seed=0)
    with pytest.raises(SettingError, match='no such folder'):
        WithMasks(open_split('', str(data), 'validation'), str(tmp_path / 'x'), c, None, seed=0)


@pytest.mark.parametrize('mode', ['L', 'LA', 'RGB', 'RGBA'])
def test_what_is_opaque_is_no_object(mode: str, tmp_path: Path) -> None:
    mask = Image.new(mode, (8, 8), 0 if mode == 'L' else (0,) * (len(mode) - 1) + (255 * ('A' in mode),))
    white = Image.new(mode, (4, 4), 255 if mode == 'L' else (255,) * len(mode))
    mask.paste(white, (0, 0))
    mask.save(tmp_path / 'mask.png')
    assert np.asarray(_above_zero(tmp_path / 'mask.png')).sum() == 16 * 255


def test_boxes_count_from_one(tmp_path: Path) -> None:
    _, masks = masked_folder(tmp_path)
    pixels = np.asarray(boxes_as_mask(masks / 'class_2' / 'a.xml')) > 0
    assert pixels.shape == (40, 60) and pixels[8:24, 32:44].all() and pixels.sum() == 16 * 12
    (tmp_path / 'bad.xml').write_text('<annotation><size></size>')
    with pytest.raises(SettingError, match='not an annotation'):
        boxes_as_mask(tmp_path / 'bad.xml')


def test_a_dense_checkpoint_of_a_vit_averages_its_patches(tmp_path: Path) -> None:
    model = timm.create_model('test_vit', num_classes=3).eval()
    averaged = timm.create_model('test_vit', num_classes=3, global_pool='avg', fc_norm=False).eval()
    averaged.load_state_dict(model.state_dict())
    images = torch.rand(2, 3, 160, 160)
    for multimix, expected in (('dense', averaged), ('multimix', model), (None, model)):
        saved = {'state_dict': model.state_dict(), **({'args': {'multimix': multimix}} if multimix else {})}
        torch.save(saved, tmp_path / 'last.pth.tar')
        found = load_checkpoint(str(tmp_path / 'last.pth.tar'), model='test_vit').model
        torch.testing.assert_close(found(images), expected(images))


@pytest.mark.parametrize('workers', [0, 1])
def test_an_image_that_cannot_be_read_is_named(run: Path, tmp_path: Path, workers: int) -> None:
    data = write_images(tmp_path / 'images')
    broken = next((data / 'validation' / 'class_1').glob('*.png'))
    broken.write_bytes(broken.read_bytes()[:60])
    images = prepared(open_split('', str(data), 'validation'), load_checkpoint(str(run)), None, 0)
    with pytest.raises(SettingError, match=rf'^An image cannot be loaded: .*{broken.name} .*Mend or remove it.$'):
        list(ImageLoader(images, 4, num_workers=workers))
    with pytest.raises(SettingError, match=rf'{broken.name} .*Mend or remove it.$'):  # before that it is timed
        measure(load_checkpoint(str(run)), images, len(images))
