"""Where a run starts from: folders, files of others, other classes, published weights without a network."""
from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import train
from timm_multimix import SettingError, from_pretrained
from timm_multimix.evaluate import load_checkpoint
from timm_multimix.hub import save_plain
from timm_multimix.runs.settings import parse_args
from timm_multimix.runs.weights import read_weights
from timm_multimix.training import build
from timm_multimix.training.norms import bn_note

FEW = ['-b', '6', '-j', '0', '--img-size', '32', '--warmup-epochs', '0', '--device', 'cpu']


def net(classes: int = 5, seed: int = 1, name: str = 'test_resnet') -> Any:
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=classes)


def built(*flags: str, classes: int = 5) -> Any:
    torch.manual_seed(0)
    return build.build_model(parse_args(['--model', 'test_resnet', '--num-classes', str(classes), *flags]))[0]


def same(a: Any, b: Any) -> set[str]:
    """Names of the weights that two models have in common."""
    return {k for k, v in a.state_dict().items() if k in b.state_dict() and torch.equal(v, b.state_dict()[k])}


def backbone(model: Any) -> set[str]:
    return {k for k in model.state_dict() if not k.startswith('fc.')}


# --------------------------------------------------------------------------------------------------- files of weights

def saved(kind: str, path: Path) -> Any:
    """A file as somebody else's program wrote it; returns the model whose weights are to be found in it."""
    model, state = net(), net().state_dict()
    if kind == 'timm':
        average = net(seed=2)
        torch.save({'epoch': 4, 'arch': 'test_resnet', 'state_dict': state, 'state_dict_ema': average.state_dict(),
                    'args': argparse.Namespace(model='test_resnet')}, path)
        return average
    lightning = {f'model.{k}': v for k, v in state.items()} | {'criterion.weight': torch.ones(5)}
    torch.save({
        'parallel': {f'module.{k}': v for k, v in state.items()},
        'compiled': {'state_dict': {f'module._orig_mod.{k}': v for k, v in state.items()}},
        'lightning': {'state_dict': lightning, 'pytorch-lightning_version': '2.4.0', 'hyper_parameters': {'lr': 0.1}},
    }[kind], path)
    return model


@pytest.mark.parametrize('kind, said', [
    ('timm', 'averaged weights (state_dict_ema)'), ('parallel', "'module.' stripped from the names"),
    ('compiled', "'module._orig_mod.' stripped"),
    ('lightning', "criterion.weight, 'model.' stripped from the names"),
])
def test_files_of_other_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, said: str) -> None:
    path = tmp_path / 'weights.pth'
    source = saved(kind, path)
    model = built('--initial-checkpoint', str(path))
    assert same(model, source) == set(source.state_dict())
    out = capsys.readouterr().out
    assert said in out and 'all of them, the classifier too' in out
    adapted = built('--pretrained-path', str(path))
    assert same(adapted, source) >= backbone(source) and 'fc.weight' not in same(adapted, source)
    assert 'state_dict' not in adapted.pretrained_cfg
    evaluated = load_checkpoint(str(path), 'test_resnet')
    assert same(evaluated.model, source) == set(source.state_dict())


@pytest.mark.parametrize('classes, said', [
    (7, 'all but the classifier, which is new: 7 classes there, 5 here'),
    (0, 'all but the classifier of 5 classes, which is new: there is none there'),
])
def test_other_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str], classes: int, said: str) -> None:
    source = net(classes)
    save_file(source.state_dict(), tmp_path / 'x.safetensors')
    model = built('--initial-checkpoint', str(tmp_path / 'x.safetensors'))
    assert same(model, source) == backbone(source) and model.get_classifier().out_features == 5
    assert same(model, built()) >= {'fc.weight', 'fc.bias'}  # as they are without a start
    assert said in capsys.readouterr().out


def test_two_classifiers_are_new_together(tmp_path: Path) -> None:
    name = 'deit_tiny_distilled_patch16_224'
    source = net(3, name=name)
    torch.save(source.state_dict(), tmp_path / 'x.pth')
    model = built('--initial-checkpoint', str(tmp_path / 'x.pth'), '--model', name, classes=2)
    assert set(source.state_dict()) - same(model, source) == {
        'head.weight', 'head.bias', 'head_dist.weight', 'head_dist.bias'}


def test_what_is_no_start(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / 'whole.pth')
    torch.save({'state_dict': net().state_dict(), 'config': Path('x')}, tmp_path / 'more.pth')
    torch.save({'lr': 0.1}, tmp_path / 'none.pth')
    torch.save(net(name='test_efficientnet').state_dict(), tmp_path / 'other.pth')
    (tmp_path / 'bytes.pth').write_bytes(b'half a file')
    for name, words in (
            ('whole.pth', r'whole pickled model \(.*ResNet.*it is not opened(.|\n)*state_dict\(\), "weights.pth"'),
            ('more.pth', r"pickle of more than weights \(.*Path(.|\n)*\['state_dict'\]"),
            ('none.pth', 'holds no weights: it has lr'), ('bytes.pth', 'cannot be read as weights'),
            ('other.pth', 'do not fit --model test_resnet(.|\n)*--pretrained-path adapts'),
            ('nowhere.pth', 'no such file')):
        with pytest.raises(SettingError, match=f"--initial-checkpoint is '.*{name}'.*{words}"):
            built('--initial-checkpoint', str(tmp_path / name))
    with pytest.raises(SettingError, match="--pretrained-path is .*whole pickled model"):
        built('--pretrained-path', str(tmp_path / 'whole.pth'))
    with pytest.raises(SettingError, match='whole pickled model'):
        read_weights(str(tmp_path / 'whole.pth'))


# ------------------------------------------------------------------------------------------------------------ folders

def test_a_run_starts_another_of_other_classes(
        tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    flags = [str(image_folder), *FEW, '--epochs', '1', '--output', str(tmp_path)]
    assert train.main([*flags, '--model', 'test_resnet', '--experiment', 'a', '--lr', '0.01']) == 0
    first = load_file(tmp_path / 'a' / 'model' / 'model.safetensors')
    config = json.loads((tmp_path / 'a' / 'model' / 'config.json').read_text())
    assert not {'license', 'tag', 'url', 'hf_hub_id', 'origin_url', 'paper_ids'} & set(config['pretrained_cfg'])
    assert config['pretrained_cfg']['input_size'] == [3, 32, 32]

    for split in ('train', 'validation'):
        (image_folder / split / 'class_2').rename(tmp_path / split)
    monkeypatch.chdir(tmp_path)
    for given in ('a', 'a/model', 'local-dir:a', 'local-dir:a/model'):
        found = parse_args([*flags, '--initial-checkpoint', given]).initial_checkpoint
        assert found == f'local-dir:{tmp_path}/a/model', given
    assert train.main([*flags, '--initial-checkpoint', 'a', '--lr', '0', '--experiment', 'b']) == 0
    args = yaml.safe_load((tmp_path / 'b' / 'args.yaml').read_text())
    assert args['initial_checkpoint'] == f'local-dir:{tmp_path}/a/model' and args['model'] == 'test_resnet'
    second = load_file(tmp_path / 'b' / 'model' / 'model.safetensors')
    assert torch.equal(second['conv1.0.weight'], first['conv1.0.weight']) and len(second['fc.weight']) == 2
    assert 'which is new: 3 classes there, 2 here' in capsys.readouterr().out
    # the same command goes on with that run
    assert train.main([*flags, '--initial-checkpoint', 'a', '--lr', '0', '--epochs', '2', '--resume', 'auto']) == 0
    out = capsys.readouterr().out
    assert 'resuming at epoch 2' in out and 'Weights:' not in out


def test_a_run_goes_on_without_the_file_it_began_with(tmp_path: Path, image_folder: Path) -> None:
    weights = tmp_path / 'x.safetensors'
    save_file(net(3).state_dict(), weights)
    assert train.main([str(image_folder), *FEW, '--model', 'test_resnet', '--pretrained-path', str(weights), '--epochs',
                       '1', '--output', str(tmp_path), '--experiment', 'x']) == 0
    weights.unlink()
    assert train.main(['--resume', str(tmp_path / 'x'), '--epochs', '2']) == 0


def test_a_model_without_grad_checkpointing_says_so() -> None:
    class Without(torch.nn.Linear):
        def set_grad_checkpointing(self, enable: bool = True) -> None:
            assert not enable, 'gradient checkpointing not supported'  # as timm's models have it

    args = parse_args(['--model', 'vgg11', '--grad-checkpointing'])
    for model in (Without(1, 1), torch.nn.Linear(1, 1)):
        with pytest.raises(SettingError, match='--grad-checkpointing is on, but vgg11 does not have it: leave it out'):
            build.place_model(args, model, torch.device('cpu'))


def test_a_run_that_has_not_come_to_its_end(tmp_path: Path) -> None:
    torch.save({'epoch': 0, 'state_dict': {}}, tmp_path / 'last.pth.tar')
    with pytest.raises(SettingError, match='not come to its end. Name its checkpoint, .*last.pth.tar, and --model'):
        parse_args(['--initial-checkpoint', str(tmp_path)])
    (tmp_path / 'last.pth.tar').unlink()
    with pytest.raises(SettingError, match='there is no model in it'):
        parse_args(['--initial-checkpoint', f'local-dir:{tmp_path}'])


def test_licences_are_named_where_they_hold(tmp_path: Path) -> None:
    model = timm.create_model('resnet10t', num_classes=3)
    assert model.pretrained_cfg['license'] and model.pretrained_cfg['tag']
    before = dict(model.pretrained_cfg)
    for origin in (False, True):
        save_plain(model, tmp_path / 'm', origin=origin)
        cfg = json.loads((tmp_path / 'm' / 'config.json').read_text())['pretrained_cfg']
        assert ('license' in cfg, 'tag' in cfg) == (origin, origin)
        assert not {'url', 'hf_hub_id', 'file', 'source'} & set(cfg)
    assert model.pretrained_cfg == before
    assert from_pretrained(tmp_path / 'm', 'dense').pretrained_cfg['license'] == before['license']


# -------------------------------------------------------------------------------------------------- without a network

@pytest.mark.parametrize('offline', [False, True])
def test_published_weights_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
    naps: list[float] = []
    monkeypatch.setattr('time.sleep', naps.append)
    for name, value in (('ENDPOINT', 'http://127.0.0.1:9'), ('HF_HUB_OFFLINE', offline),
                        ('HF_HUB_CACHE', str(tmp_path / 'hub'))):
        monkeypatch.setattr(constants, name, value)
    with pytest.raises(SettingError) as e:
        built('--pretrained', '--model', 'resnet10t')
    assert all(words in str(e.value) for words in (
        '--pretrained is on', 'timm/resnet10t', '--pretrained-path FILE', '--initial-checkpoint', 'HF_HUB_CACHE',
        'HF_HUB_OFFLINE is set' if offline else 'cannot be reached'))
    with pytest.raises(SettingError, match='user/name is not in the cache.*local-dir:FOLDER'):
        built('--initial-checkpoint', 'hf-hub:user/name')
    assert not naps  # nor was anything tried again
    torch.save(timm.create_model('resnet10t', num_classes=5).state_dict(), tmp_path / 'x.pth')  # which needs no Hub
    built('--pretrained', '--model', 'resnet10t', '--initial-checkpoint', str(tmp_path / 'x.pth'))


# ------------------------------------------------------------------------------------------------------- more epochs

def test_more_epochs_raise_the_rate_again(
        tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([str(image_folder), *FEW, '--model', 'test_resnet', '--epochs', '2', '--lr', '0.01', '--output',
                       str(tmp_path), '--experiment', 'x']) == 0
    capsys.readouterr()
    assert train.main(['--resume', str(tmp_path / 'x'), '--epochs', '4']) == 0
    assert 'rises again' not in capsys.readouterr().out  # half way down the cosine of 2 epochs, and of 4
    assert train.main(['--resume', str(tmp_path / 'x'), '--epochs', '8']) == 0
    assert 'rises again, from 0.00146 to 0.005: --epochs was 4 and is 8' in capsys.readouterr().out


@pytest.mark.parametrize('has, flags, warned', [
    ({'avx2': True, 'avx512_bf16': False}, ['--amp'], True), ({'avx2': True}, [], False),
    ({'avx2': True, 'avx512_bf16': True}, ['--amp'], False), ({'avx2': True, 'amx_bf16': True}, ['--amp'], False),
    ({'avx2': True}, ['--amp', '--amp-dtype', 'float16'], False), ({'architecture': 'aarch64'}, ['--amp'], False)])
def test_bfloat16_in_software_is_told(has: dict[str, bool], flags: list[str], warned: bool,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: has, raising=False)
    args = parse_args(['--model', 'resnet18', '--data-dir', 'x', *flags])
    assert bool(build.amp_note(args, torch.device('cpu'))) == warned
    assert build.amp_note(args, torch.device('cuda')) is None


def test_a_trained_classifier_does_not_begin_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--head-init-scale, which the recipe of fine-tuning has, is for a new one: of a run that a second one follows."""
    save_file(net(classes=5).state_dict(), tmp_path / 'five.safetensors')
    save_plain(net(classes=5), tmp_path / 'run' / 'model', {'input_size': (3, 32, 32)}, {})
    for start in ('five.safetensors', 'run/model'):
        for classes, kept in ((5, True), (4, False)):
            args = parse_args(['--model', 'test_resnet', '--data-dir', 'x', '--num-classes', str(classes),
                               '--head-init-scale', '0.01', '--head-init-bias', '0.5',
                               '--initial-checkpoint', str(tmp_path / start)])
            model, _ = build.build_model(args)
            said = capsys.readouterr().out
            assert ('leave it as it is' in said) == kept
            if kept:
                assert torch.equal(model.fc.weight, net(classes=5).fc.weight)
            else:
                assert model.fc.weight.abs().max() < 0.01 and (model.fc.bias == 0.5).all()


def test_pretrained_path_of_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = timm.create_model('test_vit', depth=4)
    weights = {k: v for k, v in small.state_dict().items() if not k.startswith('blocks.3.')}
    save_file(weights, tmp_path / 'three.safetensors')
    flags = ['--model', 'test_vit', '--pretrained', '--pretrained-path', str(tmp_path / 'three.safetensors')]
    with pytest.raises(SettingError, match=r'lacks 12 of the \d+ tensors of --model test_vit beside the classifier '
                                           r'\(blocks.3.*it is of another model'):
        built(*flags, '--model-kwargs', 'depth=4')
    built(*flags, '--model-kwargs', 'depth=3')
    assert 'all but the classifier of 5 classes, which is new.' in capsys.readouterr().out
    built(*flags, '--model-kwargs', 'depth=3', '--gp', 'avg')  # has a norm of its own
    out = capsys.readouterr().out
    assert re.search(r'which is new. It lacks 2 of the other \d+ tensors \(fc_norm.*, which start at random', out)
    with pytest.raises(SettingError, match='has 12 tensors that --model test_vit has not'):
        built(*flags, '--model-kwargs', 'depth=2')
    with pytest.raises(SettingError, match='lacks .*it is of another model'):
        built('--pretrained-path', str(tmp_path / 'three.safetensors'))
    theirs = timm.create_model('swin_tiny_patch4_window7_224', num_classes=5).state_dict()
    old = {}  # Microsoft's names, which timm translates
    for k, v in theirs.items():
        old[re.sub(r'(?<=^layers.)\d(?=.downsample)', lambda m: str(int(m[0]) - 1), k.replace('head.fc', 'head'))] = v
    torch.save({'model': old}, tmp_path / 'swin.pth')
    model = built('--model', 'swin_tiny_patch4_window7_224', '--pretrained-path', str(tmp_path / 'swin.pth'))
    assert 'all but the classifier of 5 classes, which is new.\n' in capsys.readouterr().out
    assert torch.equal(model.layers[1].downsample.norm.weight, theirs['layers.1.downsample.norm.weight'])


def test_statistics_of_no_pretraining() -> None:
    vit = timm.create_model('test_vit')
    for flags, model, words in (
            (['--bn-eval'], net(), 'Add --pretrained'), (['--bn-eval', '--pretrained'], net(), None), ([], net(), None),
            (['-c', 'finetune'], vit, 'Add --pretrained'), (['-c', 'finetune', '--pretrained'], vit, None),
            (['--bn-eval', '--pretrained'], vit, 'has no batch norms')):
        note = bn_note(parse_args(flags), model)
        assert (words in note) if words and note else note is words
