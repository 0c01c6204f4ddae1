"""Images of 1 and 4 channels, from training to everything that takes the trained model."""
from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import evaluate
import train
from timm_multimix import SettingError, from_pretrained
from timm_multimix.data import create_train_val, image_mode
from timm_multimix.evaluate.images import open_split, prepared
from timm_multimix.evaluate.load import load_checkpoint
from timm_multimix.hub import export, save_plain

pytestmark = pytest.mark.usefixtures('blank_pictures')
SMALL = ('--model', 'test_resnet', '--epochs', '1', '-j', '0', '--img-size', '32', '-b', '6', '--warmup-epochs', '0',
         '--multimix', 'multimix', '--crop-pct', '1')
MODES = {'RGBA': 4, 'CMYK': 4, 'L': 1, 'LA': 2, 'HSV': 3}


def in_mode(folder: Path, target: Path, mode: str) -> Path:
    for path in folder.rglob('*.png'):
        there = target / path.relative_to(folder).with_suffix('.jpg' if mode == 'CMYK' else '.png')
        there.parent.mkdir(parents=True, exist_ok=True)
        image = Image.open(path)
        if mode == 'RGBA':
            image.putalpha(Image.fromarray(np.asarray(image)[..., 0] // 2))
        (image if mode in ('RGBA', 'HSV') else image.convert(mode)).save(there)
    return target


@pytest.mark.parametrize('mode', MODES)
def test_the_mode_goes_with_the_model(
        mode: str, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = in_mode(image_folder, tmp_path / 'data', mode), tmp_path / 'out' / 'x'
    flags = ['--data-dir', str(data), '--output', str(run.parent), *SMALL]
    assert train.main([*flags, '--in-chans', str(MODES[mode]), '--input-img-mode', mode, '--experiment', 'x']) == 0
    assert json.loads((run / 'model' / 'config.json').read_text())['input_img_mode'] == mode

    # what evaluation sees is what training saw: the images in that mode, normalised
    for source in (str(run), f'local-dir:{run}/model', str(run / 'model' / 'model.safetensors')):
        assert load_checkpoint(source).input_img_mode == mode
    found = load_checkpoint(str(run))
    _, val = create_train_val('', str(data))
    images = prepared(open_split('', str(data), 'validation'), found, None, 0)
    pixels = np.asarray(Image.open(val.reader.samples[images.indices[0]][0]).convert(mode), np.float32) / 255
    c = found.data_config
    expected = (torch.tensor(pixels).reshape(32, 32, -1).permute(2, 0, 1)
                - torch.tensor(c['mean']).view(-1, 1, 1)) / torch.tensor(c['std']).view(-1, 1, 1)
    torch.testing.assert_close(images[0][0], expected)
    assert expected.shape == (MODES[mode], 32, 32)
    on = ['accuracy,robustness,ood,embedding,attention', '--attacks', 'fgsm', '--ood', 'uniform', 'photographs',
          '--ood-images', '5', '--bank', '9', '--knn-k', '2'] if mode in ('RGBA', 'L') else ['accuracy']
    assert evaluate.main([str(run), '--data-dir', str(data), '-j', '0', '--output', str(tmp_path / 'e'), '--on',
                          *on]) == 0

    # a restart takes it over, and so does what is loaded, saved and exported again
    model = from_pretrained(run)
    assert model.multimix.input_img_mode == mode
    assert model(torch.randn(2, MODES[mode], 32, 32)).shape == (2, 3)
    save_plain(model, tmp_path / 'again')
    assert json.loads((tmp_path / 'again' / 'config.json').read_text())['input_img_mode'] == mode
    capsys.readouterr()
    assert train.main([*flags, '--initial-checkpoint', f'local-dir:{run}/model', '--experiment', 'y']) == 0
    config = json.loads((run.parent / 'y' / 'model' / 'config.json').read_text())
    assert config['input_img_mode'] == mode and config['pretrained_cfg']['input_size'] == [MODES[mode], 32, 32]
    saved = yaml.safe_load((run.parent / 'y' / 'args.yaml').read_text())
    assert saved['input_img_mode'] == mode
    assert train.main(['--resume', str(run.parent / 'y'), '--epochs', '2']) == 0
    card = (export(run, tmp_path / 'out' / 'card') / 'README.md').read_text()
    assert f'for {mode} images of 32×32 pixels' in card and f".convert('{mode}')" in card


def test_weights_alone_need_the_mode_of_4_channels(image_folder: Path, tmp_path: Path) -> None:
    data, run = in_mode(image_folder, tmp_path / 'data', 'RGBA'), tmp_path / 'x'
    assert train.main([*SMALL, '--data-dir', str(data), '--output', str(tmp_path), '--experiment', 'x', '--in-chans',
                       '4', '--input-img-mode', 'RGBA']) == 0
    shutil.copy(run / 'model' / 'model.safetensors', tmp_path / 'bare.safetensors')
    options: dict[str, Any] = {'model_kwargs': {'in_chans': 4}, 'img_size': 32}
    with pytest.raises(SettingError, match='--input-img-mode is not given.*RGBA or CMYK'):
        load_checkpoint(str(tmp_path / 'bare.safetensors'), 'test_resnet', **options)
    found = load_checkpoint(str(tmp_path / 'bare.safetensors'), 'test_resnet', input_img_mode='RGBA', **options)
    assert found.data_config['input_size'] == (4, 32, 32) and len(found.data_config['mean']) == 4
    command = [str(tmp_path / 'bare.safetensors'), '--model', 'test_resnet', '--model-kwargs', 'in_chans=4',
               '--img-size', '32', '--data-dir', str(data), '--on', 'accuracy', '-j', '0', '--output', str(tmp_path)]
    assert [evaluate.main([*command, *more]) for more in ([], ['--input-img-mode', 'RGBA'])] == [2, 0]


def test_modes_and_channels_that_do_not_fit_are_refused(
        image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [image_mode(n) for n in (1, 2, 3)] == ['L', 'LA', 'RGB']
    for flags, words in ((('--in-chans', '4'), 'which may be RGBA or CMYK'),
                         (('--in-chans', '5'), 'images have 1 to 4'),
                         (('--input-img-mode', 'L'), "'L', which has 1, but the model takes images of 3 channels"),
                         (('--in-chans', '3', '--input-img-mode', 'RGBA'), "'RGBA', which has 4,")):
        assert train.main([*SMALL, '--data-dir', str(image_folder), *flags]) == 2
        assert words in capsys.readouterr().err
