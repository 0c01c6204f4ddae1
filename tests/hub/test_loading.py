"""There and back: what is pushed or saved, loaded by timm alone and with its settings."""
from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Optional

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file, save_file

import train
from tests import forked
from tests.conftest import ROOT
from tests.hub.conftest import SMALL, a_run, logits, wrapped
from tests.hub.server import TOKEN, HubServer
from timm_multimix import MultiMixConfig, SettingError, from_pretrained, push_to_hub, unwrap
from timm_multimix.evaluate.load import load_checkpoint
from timm_multimix.hub import export, push, save_plain
from timm_multimix.runs.settings import parse_args


def with_timm_alone(hub: HubServer, home: Path, name: str, out: Path, **kwargs: Any) -> torch.Tensor:
    """The logits of a model, from a process that cannot import timm_multimix and has an empty cache."""
    script = ("import sys; sys.modules['timm_multimix'] = None\n"
              'import json, timm, torch\n'
              'model = timm.create_model(sys.argv[1], pretrained=True, **json.loads(sys.argv[3])).eval()\n'
              'torch.manual_seed(7)\n'
              'torch.save(model(torch.randn(2, 3, 32, 32)).detach(), sys.argv[2])\n'
              "print(json.dumps([timm.data.resolve_model_data_config(model), model.pretrained_cfg['label_names']]))\n")
    done = forked.run('-c', script, name, str(out), json.dumps(kwargs), env={**os.environ, **hub.env(home, None)},
                      cwd=home.parent, bare=True)
    assert done.returncode == 0, done.stderr[-3000:]
    data, labels = json.loads(done.stdout)
    assert data['input_size'] == [3, 32, 32] and labels == ['class_0', 'class_1', 'class_2']
    return torch.load(out)


def test_from_training_to_a_stranger_with_timm_alone(
        hub: HubServer, tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ['--model', 'test_vit', '--multimix', 'dense', '--multimix-n', '60', *SMALL, '--data-dir',
             str(image_folder), '-b', '6', '--epochs', '2', '--lr', '1e-3', '--model-ema', '--model-ema-decay', '0.9',
             '--output', str(tmp_path), '--experiment', 'x']
    assert train.main([*flags, '--push-to-hub', 'user/name', '--push-every', '1', '--push-private']) == 0
    said = capsys.readouterr()
    repo, run = hub.repos['user/name'], tmp_path / 'x'
    assert repo.private and repo.messages == ['initial commit', 'Push after epoch 1', 'Push after the last epoch']
    assert 'Pushed epoch 1: ' in said.out and f'Pushed the last epoch: {hub.url}/user/name/commit/' in said.out
    assert not list(run.glob('.push-*'))
    files = repo.files()
    assert set(files) == {'.gitattributes', 'README.md', 'args.yaml', 'config.json', 'curves.png', 'model.safetensors',
                          'multimix.yaml', 'raw/config.json', 'raw/model.safetensors', 'summary.csv'}

    repo.private = False
    here = timm.create_model(f'local-dir:{run}/model', pretrained=True)
    there = with_timm_alone(hub, tmp_path / 'home', 'hf-hub:user/name', tmp_path / 'logits')
    assert torch.equal(logits(here), there)
    raw = timm.create_model(f'local-dir:{run}/model/raw', pretrained=True)
    saved = torch.load(run / 'last.pth.tar', weights_only=False)
    assert all(torch.equal(v, saved['state_dict'][k]) for k, v in raw.state_dict().items())
    assert not torch.equal(logits(raw), there)
    model = from_pretrained('hf-hub:user/name', raw=True)
    assert model.multimix.config.n == 60 and torch.equal(logits(model), logits(raw))

    for text in (said.out, said.err, (run / 'args.yaml').read_text(), *(
            d.decode() for n, d in files.items() if n.endswith(('.yaml', '.md', '.csv', '.json')))):
        assert TOKEN not in text
    published = yaml.safe_load(files['args.yaml'])
    assert not {'push_to_hub', 'output', 'experiment'} & set(published) and str(tmp_path) not in str(published)
    (tmp_path / 'args.yaml').write_bytes(files['args.yaml'])  # it runs, and pushes nowhere
    again = parse_args(['-c', str(tmp_path / 'args.yaml')])
    assert again.push_to_hub == '' and again.model == 'test_vit' and again.multimix_n == 60
    card = files['README.md'].decode()
    assert "timm.create_model('hf-hub:user/name', pretrained=True)" in card and 'averaged weights' in card
    block = card.split('```python\n')[1].split('```')[0]
    compile(block, 'card', 'exec')
    lines = card.split('```python\n')[2].split('```')[0]  # how to get the weights that were not averaged
    space: dict[str, Any] = {'timm': timm}
    exec(lines, space)
    assert torch.equal(logits(space['model']), logits(raw))


def test_a_model_and_its_settings(hub: HubServer) -> None:
    model = wrapped(attention='cam')
    done = push_to_hub(model, 'user/name', label_names=list('abcdef'), license='mit')
    again = from_pretrained('hf-hub:user/name')
    assert again.multimix.config == model.multimix.config and again.multimix.config.attention == 'cam'
    assert torch.equal(logits(again), logits(model))
    again.set_progress(1)
    again.train()(torch.randn(8, 3, 160, 160), torch.arange(8) % 4).loss.backward()
    assert all(p.grad is not None for p in again.parameters())
    assert from_pretrained('hf-hub:user/name', effective=3, n=7).multimix.config.n == 7
    assert from_pretrained('hf-hub:user/name', 'multimix').multimix.config == MultiMixConfig('multimix')
    fresh = from_pretrained('hf-hub:user/name', num_classes=3)
    assert fresh.num_classes == 3
    assert torch.equal(fresh.patch_embed.proj.weight, model.patch_embed.proj.weight)
    card = ModelCard(hub.repos['user/name'].files()['README.md'].decode())
    assert card.data.license == 'mit' and 'Results' not in card.text and 'a, b, c, d, e, f' in card.text

    push_to_hub(wrapped(1, n=9), 'user/name', revision='dev')
    assert from_pretrained('hf-hub:user/name', revision='dev').multimix.config.n == 9
    assert from_pretrained('hf-hub:user/name@dev').multimix.config.n == 9
    assert from_pretrained('hf-hub:user/name').multimix.config.n == 50
    assert torch.equal(logits(from_pretrained('hf-hub:user/name', revision=done.oid)), logits(model))
    with pytest.raises(SettingError, match='give one'):
        from_pretrained('hf-hub:user/name@dev', revision='main')
    push_to_hub(from_pretrained('hf-hub:user/name@dev'), 'user/copy')  # what was loaded goes out again
    assert torch.equal(logits(from_pretrained('hf-hub:user/copy')), logits(wrapped(1)))


def test_names_of_classes_are_those_of_the_classifier(tmp_path: Path) -> None:
    model = timm.create_model('test_resnet', num_classes=3)
    with pytest.raises(SettingError, match='label_names has 2 names, but the model has 3 classes'):
        save_plain(model, tmp_path / 'm', label_names=['cat', 'dog'])
    assert not (tmp_path / 'm').exists()
    save_plain(model, tmp_path / 'm', label_names=['cat', 'dog', 'eel'])

    def again(folder: str, names: Optional[list[str]] = None, **kwargs: Any) -> Any:
        """The names that a model has, saved anew."""
        model = timm.create_model(f'local-dir:{tmp_path}/m', pretrained=True, **kwargs)
        save_plain(model, tmp_path / folder, label_names=names)
        return timm.create_model(f'local-dir:{tmp_path}/{folder}').pretrained_cfg.get('label_names')

    assert again('same') == ['cat', 'dog', 'eel'] and again('others', ['x', 'y', 'z']) == ['x', 'y', 'z']
    assert not again('wide', num_classes=4)  # those of the old classifier
    assert 'eel' not in (tmp_path / 'others' / 'config.json').read_text()


def saved_counts(folder: Path) -> Any:
    return yaml.safe_load((folder / 'multimix.yaml').read_text()).get('mixed_steps')


def test_what_was_mixed_is_saved_and_is_no_setting(tmp_path: Path) -> None:
    model = wrapped(preset='embeddings', prob=0.5).train()
    save_plain(model, tmp_path / 'new')
    assert saved_counts(tmp_path / 'new') is None  # nothing was counted
    for _ in range(8):
        model(torch.randn(4, 3, 160, 160), torch.arange(4))
    assert 0 < model.policy.counts['embeddings'] < 8
    save_plain(model, tmp_path / 'm')
    assert saved_counts(tmp_path / 'm') == dict(model.policy.counts)
    again = from_pretrained(tmp_path / 'm')
    assert again.multimix.config == model.multimix.config and not again.policy.counts
    assert from_pretrained(tmp_path / 'm', n=7).multimix.config == model.multimix.config.replace(n=7)

    given = Counter(steps=1170, embeddings=219, inputs=658, mixup=330, cutmix=328, nothing=293)
    save_plain(model, tmp_path / 'given', counts=given)
    config = model.multimix.config
    save_plain(unwrap(model), tmp_path / 'plain', model_args=model.timm_args, config=config, counts=given)
    for name in ('given', 'plain'):
        assert saved_counts(tmp_path / name) == dict(given)
        assert from_pretrained(tmp_path / name).multimix.config == config
    save_plain(unwrap(model), tmp_path / 'none', counts=given)
    assert not (tmp_path / 'none' / 'multimix.yaml').exists()  # there are no settings


def test_other_settings_than_the_files_which_repeats_the_presets(tmp_path: Path) -> None:
    given = {'n': 50, 'effective': 2}
    save_plain(wrapped(), tmp_path / 'm')

    def config(**settings: Any) -> MultiMixConfig:
        return from_pretrained(tmp_path / 'm', **settings).multimix.config

    assert config(preset='paper') == MultiMixConfig('dense', preset='paper', **given)
    assert config(attention='uniform').attention_norm is None and config(attention='learned').attention_lr == 1e-3
    assert config(mode='multimix') == MultiMixConfig('multimix', **given)


def test_a_teacher_is_not_in_a_model_that_was_taught(tmp_path: Path) -> None:
    save_plain(wrapped(teacher='ema', teacher_weight=0.3), tmp_path / 'm')
    plain = MultiMixConfig('dense', n=50, effective=2)
    with pytest.warns(UserWarning, match="trained with the teacher 'ema', which is not in it"):
        model = from_pretrained(tmp_path / 'm')
    assert model.multimix.config == plain
    assert model.train()(torch.randn(4, 3, 32, 32), torch.arange(4) % 3).loss.isfinite()
    assert from_pretrained(tmp_path / 'm', teacher=None).multimix.config == plain
    again = from_pretrained(tmp_path / 'm', teacher='ema').multimix.config
    assert again == plain.replace(teacher='ema', teacher_weight=0.3)


def test_one_commit_is_read_even_if_another_is_pushed_meanwhile(
        hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    first = wrapped(0)
    push_to_hub(first, 'user/name')
    from timm_multimix.hub import load
    download = load.hf_hub_download

    def meanwhile(repo_id: str, file: str, **kwargs: Any) -> str:
        found = download(repo_id, file, **kwargs)
        if file == 'config.json':
            push_to_hub(wrapped(1, n=9), 'user/name')
        return found

    monkeypatch.setattr(load, 'hf_hub_download', meanwhile)
    loaded = from_pretrained('hf-hub:user/name')
    assert loaded.multimix.config.n == 50 and torch.equal(logits(loaded), logits(first))


def test_folders(tmp_path: Path) -> None:
    model = wrapped()
    run = a_run(tmp_path / 'run', model)
    for name in (f'local-dir:{run}/model', f'local-dir:{run}', run, str(run / 'model')):
        assert torch.equal(logits(from_pretrained(name)), logits(model))
    save_plain(unwrap(model), tmp_path / 'plain', model_args=model.timm_args)
    with pytest.raises(SettingError, match=r"no multimix.yaml.*from_pretrained\(.*, 'dense'\)"):
        from_pretrained(tmp_path / 'plain')
    assert from_pretrained(tmp_path / 'plain', 'dense', n=5).multimix.config.n == 5
    with pytest.raises(SettingError, match='hf-hub:user/name'):
        from_pretrained('user/name')
    with pytest.raises(SettingError, match='not averaged'):
        from_pretrained(run, raw=True)
    with pytest.raises(SettingError, match='which has none'):
        from_pretrained(run, revision='main')
    with pytest.raises(SettingError, match=r'no trained model.*--resume'):
        (tmp_path / 'half').mkdir()
        (tmp_path / 'half' / 'last.pth.tar').touch()
        export(tmp_path / 'half', tmp_path / 'out')


def test_a_folder_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = wrapped()
    save_plain(first, tmp_path / 'm')

    def full_disk(*_: Any) -> None:
        raise OSError(28, 'No space left on device')

    from timm_multimix.hub import save
    monkeypatch.setattr(save, 'save_file', full_disk)
    with pytest.raises(OSError, match='No space'):
        save_plain(wrapped(1), tmp_path / 'm', raw=wrapped(2))
    assert torch.equal(logits(from_pretrained(tmp_path / 'm')), logits(first))
    save_file({'x': torch.zeros(1)}, tmp_path / 'x.safetensors')
    assert push.WAITS == tuple(sorted(push.WAITS))


def test_fine_tuning_from_the_hub(
        hub: HubServer, tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped(2)
    push_to_hub(model, 'user/base')
    flags = [*SMALL, '--img-size', '160', '--data-dir', str(image_folder), '-b', '8', '--output', str(tmp_path),
             '--lr', '0', '--initial-checkpoint', 'hf-hub:user/base']
    assert train.main([*flags, '--multimix', 'dense', '--experiment', 'a']) == 0
    tuned = load_file(tmp_path / 'a' / 'model' / 'model.safetensors')
    for name, value in unwrap(model).state_dict().items():  # 3 classes instead of 6; with lr 0 the rest stays
        assert (name.startswith('head.')) != torch.equal(tuned[name], value), name
    args = yaml.safe_load((tmp_path / 'a' / 'args.yaml').read_text())
    assert args['model'] == 'test_vit' and args['initial_checkpoint'] == 'hf-hub:user/base'
    built = timm.create_model(f'local-dir:{tmp_path}/a/model', pretrained=True)
    assert built.num_classes == 3 and built.global_pool == 'avg'
    export(tmp_path / 'a', tmp_path / 'card')
    assert ModelCard.load(tmp_path / 'card' / 'README.md').data.base_model == 'user/base'
    assert train.main(['--resume', str(tmp_path / 'a'), '--epochs', '2']) == 0
    capsys.readouterr()
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path)  # --model with --pretrained is another way to say it, also from another folder
    assert train.main([*flags[:-2], '--model', 'local-dir:a/model', '--pretrained', '--experiment', 'b']) == 0
    args = yaml.safe_load((tmp_path / 'b' / 'args.yaml').read_text())
    assert args['model'] == 'test_vit' and args['initial_checkpoint'] == f'local-dir:{tmp_path}/a/model'
    monkeypatch.chdir(tmp_path / 'elsewhere')
    assert train.main(['--resume', str(tmp_path / 'b'), '--epochs', '2']) == 0
    assert torch.equal(load_file(tmp_path / 'b' / 'model' / 'model.safetensors')['head.weight'], tuned['head.weight'])
    capsys.readouterr()
    assert train.main([*flags, '--model', 'resnet18']) == 2
    assert 'leave --model out' in capsys.readouterr().err
    hub.add('stranger/pickle', {'config.json': hub.repos['user/base'].files()['config.json'],
                                'pytorch_model.bin': bytes(9000)})
    for given in (['--initial-checkpoint', 'hf-hub:stranger/pickle'], ['--model', 'hf-hub:stranger/pickle',
                                                                      '--pretrained']):
        assert train.main([*SMALL, *given]) == 2
        assert 'pickle, which can run any code' in capsys.readouterr().err


@pytest.mark.parametrize('name, files, words', [
    ('missing', None, 'no repository user/missing on the Hub, or it is private'),
    ('private', {}, 'no repository user/private on the Hub, or it is private and you are not logged in'),
    ('gated', {}, 'user/gated is gated: ask for access'),
    ('rev', {}, "user/rev has no revision 'v9'"),
    ('empty', {}, 'has no model.safetensors'),
    ('pickle', {'config.json': b'', 'pytorch_model.bin': b'x'}, 'pickle, which can run any code'),
    ('transformers', {'config.json': b'{"model_type": "vit"}', 'model.safetensors': b'x'}, 'not one of timm'),
    ('text', {'config.json': b'hello', 'model.safetensors': b'x'}, 'not one of timm'),
    ('new', {'config.json': b'{"architecture": "net_of_2099", "pretrained_cfg": {}}', 'model.safetensors': b'x'},
     "is a 'net_of_2099', which timm"),
    ('noconfig', {'model.safetensors': b'x'}, 'has no config.json'),
])
def test_what_cannot_be_loaded(hub: HubServer, monkeypatch: pytest.MonkeyPatch, name: str,
                               files: Optional[dict[str, bytes]], words: str) -> None:
    monkeypatch.setenv('HF_TOKEN', '')
    if files is not None:
        hub.add(f'user/{name}', files, private=name == 'private', gated=name == 'gated')
    with pytest.raises(SettingError, match=words):
        from_pretrained(f'hf-hub:user/{name}', revision='v9' if name == 'rev' else None)
    assert not any('.bin' in path and method == 'GET' for method, path, _, _ in hub.requests)


def test_damaged_and_foreign_files(hub: HubServer, tmp_path: Path) -> None:
    save_plain(wrapped(), tmp_path / 'm')
    files = {p.name: p.read_bytes() for p in (tmp_path / 'm').iterdir()}
    weights = files['model.safetensors']
    for bad in ({'model.safetensors': weights[:-100]}, {'model.safetensors': b'\x80\x04' + weights},
                {'config.json': files['config.json'].replace(b'"test_vit"', b'"test_resnet"')},
                {'config.json': files['config.json'].replace(b'"fc_norm"', b'"checkpoint_path"')}):
        hub.add('user/bad', {**files, **bad})
        hub.repos['user/bad'].branches['main'] = hub.repos['user/bad'].branches['main'][-1:]
        shutil.rmtree(Path(constants.HF_HUB_CACHE), ignore_errors=True)
        with pytest.raises(SettingError, match='do not fit each other, or are damaged|safetensors .* is damaged'):
            from_pretrained('hf-hub:user/bad')
    for yaml_text, words in ((b'mode: dense\nnew_thing: 3\n', "'new_thing' is not a setting"),
                             (b'!!python/object/apply:os.system [echo]', 'cannot be used'), (b'- 1', 'no settings')):
        hub.add('user/bad', {**files, 'multimix.yaml': yaml_text})
        shutil.rmtree(Path(constants.HF_HUB_CACHE), ignore_errors=True)
        with pytest.raises(SettingError, match=words):
            from_pretrained('hf-hub:user/bad')
        assert from_pretrained('hf-hub:user/bad', 'dense').multimix.config.mode == 'dense'


def test_transformers_can_read_it_too(tmp_path: Path) -> None:
    """Of its `AutoModelForImageClassification`: num_classes is an argument of its own, and must not come twice."""
    save_plain(timm.create_model('test_vit', num_classes=5, img_size=64), tmp_path / 'plain')
    for folder in (tmp_path / 'plain', *(ROOT / 'checkpoints').iterdir()):
        config = json.loads((folder / 'config.json').read_text())
        assert config['num_classes'] and 'num_classes' not in config.get('model_args', {}), folder
    again = timm.create_model(f'local-dir:{tmp_path / "plain"}', pretrained=True)
    assert again.num_classes == 5 and again.patch_embed.img_size == (64, 64)
    if find_spec('transformers') is not None:
        from transformers import AutoModelForImageClassification
        theirs = AutoModelForImageClassification.from_pretrained(tmp_path / 'plain')
        images = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(theirs.eval()(images).logits, again.eval()(images))


@pytest.mark.parametrize('where', [('num_classes',), ('pretrained_cfg', 'num_classes'), ('model_args', 'num_classes')])
def test_a_config_that_contradicts_its_weights_is_refused(where: tuple[str, ...], tmp_path: Path) -> None:
    """timm would give it a random classifier, and chance accuracy without a word."""
    folder = Path(shutil.copytree(ROOT / 'checkpoints' / 'test_efficientnet_digits', tmp_path / 'copy'))
    config = json.loads((folder / 'config.json').read_text())
    part = config
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = 7
    (folder / 'config.json').write_text(json.dumps(config))
    words = 'says num_classes 7, but the classifier in model.safetensors has 10'
    for load in (from_pretrained, load_checkpoint):
        with pytest.raises(SettingError, match=words):
            load(str(folder))
    with pytest.raises(SettingError, match=words):
        from_pretrained(folder, num_classes=3)
