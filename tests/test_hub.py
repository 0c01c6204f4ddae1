"""The Hub: real clients of huggingface_hub and timm against a server on the loopback interface that misbehaves."""
from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file, save_file

import timm_multimix
import train
from timm_multimix import MultiMixConfig, SettingError, from_pretrained, list_checkpoints, push_to_hub, unwrap, wrap
from timm_multimix.cli import parse_args
from timm_multimix.data import create_train_val
from timm_multimix.hub import BackgroundPush, HubError, export, push, save_plain
from timm_multimix.hub.__main__ import main as hub_main
from timm_multimix.hub.card import MARK, train_command
from timm_multimix.hub.errors import scrub

from .conftest import ROOT
from .hub_server import READER, TOKEN, HubServer

SHIPPED = ROOT / 'checkpoints' / 'test_efficientnet_digits'
SMALL = ('--epochs', '1', '--warmup-epochs', '0', '-j', '0', '--img-size', '32')


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub with `user` logged in, for this process (whose client read its settings long ago) and its children."""
    home = tmp_path / 'hf'
    with HubServer() as server:
        for name, value in server.env(home).items():
            monkeypatch.setenv(name, value)
        for name, value in (
                ('ENDPOINT', server.url), ('HUGGINGFACE_CO_URL_TEMPLATE', server.url + '/{repo_id}/resolve/{revision}/'
                 '{filename}'), ('HF_HUB_OFFLINE', False), ('HF_HUB_DISABLE_XET', True),
                ('HF_HUB_CACHE', str(home / 'hub')), ('HF_TOKEN_PATH', str(home / 'token'))):
            monkeypatch.setattr(constants, name, value)
        yield server


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited between attempts, without waiting."""
    found: list[float] = []
    monkeypatch.setattr(time, 'sleep', found.append)
    return found


def small_model(seed: int = 0, name: str = 'test_vit', **kwargs: Any) -> torch.nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=4, **kwargs)


def wrapped(seed: int = 0, **settings: Any) -> timm_multimix.MultiMixModel:
    return wrap(small_model(seed), 'dense', **{'n': 50, 'effective': 2, **settings})


def a_run(folder: Path, model: Optional[torch.nn.Module] = None, **args: Any) -> Path:
    """What train.py leaves behind, after 2 of 3 epochs."""
    parsed = vars(parse_args(['--model', 'test_vit', '--multimix', 'dense', '--epochs', '3']))
    folder.mkdir(parents=True)
    save_plain(model or wrapped(), folder / 'model', label_names=['cat', 'dog', 'eel', 'fox'])
    (folder / 'args.yaml').write_text(yaml.safe_dump({**parsed, **args}))
    (folder / 'summary.csv').write_text('epoch,train_loss,eval_loss,eval_top1,eval_top5\n0,2,1.5,61.25,90\n'
                                        '1,1.5,1.25,58.75,91.5\n')
    (folder / 'curves.png').write_bytes(b'\x89PNG' + bytes(5000))
    return folder


def logits(model: torch.nn.Module) -> torch.Tensor:
    torch.manual_seed(7)
    with torch.no_grad():
        return model.eval()(torch.randn(2, *unwrap(model).pretrained_cfg['input_size']))


def with_timm_alone(hub: HubServer, home: Path, name: str, out: Path, **kwargs: Any) -> torch.Tensor:
    """The logits of a model, from a process that cannot import timm_multimix and has an empty cache."""
    script = ("import sys; sys.modules['timm_multimix'] = None\n"
              'import json, timm, torch\n'
              'model = timm.create_model(sys.argv[1], pretrained=True, **json.loads(sys.argv[3])).eval()\n'
              'torch.manual_seed(7)\n'
              'torch.save(model(torch.randn(2, 3, 32, 32)).detach(), sys.argv[2])\n'
              "print(json.dumps([timm.data.resolve_model_data_config(model), model.pretrained_cfg['label_names']]))\n")
    done = subprocess.run([sys.executable, '-c', script, name, str(out), json.dumps(kwargs)], capture_output=True,
                          text=True, env={**os.environ, **hub.env(home, None)}, cwd=home.parent, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    data, labels = json.loads(done.stdout)
    assert data['input_size'] == [3, 32, 32] and labels == [str(i) for i in range(10)]
    return torch.load(out)


# ---------------------------------------------------------------------------------------------- there and back again

def test_from_training_to_a_stranger_with_timm_alone(
        hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ['--model', 'test_vit', '--multimix', 'dense', '--multimix-n', '60', *SMALL, '--epochs', '2', '--lr',
             '1e-3', '--model-ema', '--model-ema-decay', '0.9', '--output', str(tmp_path), '--experiment', 'x']
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
    assert model.config.n == 60 and torch.equal(logits(model), logits(raw))

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
    done = push_to_hub(model, 'user/name', label_names=list('abcd'), license='mit')
    again = from_pretrained('hf-hub:user/name')
    assert again.config == model.config and again.config.attention == 'cam'
    assert torch.equal(logits(again), logits(model))
    again.train()(torch.randn(8, 3, 160, 160), torch.arange(8) % 4).loss.backward()
    assert all(p.grad is not None for p in again.parameters())
    assert from_pretrained('hf-hub:user/name', effective=3, n=7).config.n == 7
    assert from_pretrained('hf-hub:user/name', 'multimix').config == MultiMixConfig('multimix')
    fresh = from_pretrained('hf-hub:user/name', num_classes=3)
    assert fresh.num_classes == 3
    assert torch.equal(fresh.patch_embed.proj.weight, model.patch_embed.proj.weight)
    card = ModelCard(hub.repos['user/name'].files()['README.md'].decode())
    assert card.data.license == 'mit' and 'Results' not in card.text and 'a, b, c, d' in card.text

    push_to_hub(wrapped(1, n=9), 'user/name', revision='dev')
    assert from_pretrained('hf-hub:user/name', revision='dev').config.n == 9
    assert from_pretrained('hf-hub:user/name@dev').config.n == 9
    assert from_pretrained('hf-hub:user/name').config.n == 50
    assert torch.equal(logits(from_pretrained('hf-hub:user/name', revision=done.oid)), logits(model))
    with pytest.raises(SettingError, match='give one'):
        from_pretrained('hf-hub:user/name@dev', revision='main')
    push_to_hub(from_pretrained('hf-hub:user/name@dev'), 'user/copy')  # what was loaded goes out again
    assert torch.equal(logits(from_pretrained('hf-hub:user/copy')), logits(wrapped(1)))


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
    assert loaded.config.n == 50 and torch.equal(logits(loaded), logits(first))


def test_folders(tmp_path: Path) -> None:
    model = wrapped()
    run = a_run(tmp_path / 'run', model)
    for name in (f'local-dir:{run}/model', f'local-dir:{run}', run, str(run / 'model')):
        assert torch.equal(logits(from_pretrained(name)), logits(model))
    save_plain(unwrap(model), tmp_path / 'plain', model_args=model.timm_args)
    with pytest.raises(SettingError, match=r"no multimix.yaml.*from_pretrained\(.*, 'dense'\)"):
        from_pretrained(tmp_path / 'plain')
    assert from_pretrained(tmp_path / 'plain', 'dense', n=5).config.n == 5
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


def test_what_cannot_be_loaded_again_is_not_pushed(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingError, match='Conv2d is not a model of timm'):
        push_to_hub(torch.nn.Conv2d(3, 3, 1), 'user/name')
    model = small_model()
    model.head.register_forward_hook(lambda _, __, out: out + 1)  # as something that no config tells
    with pytest.raises(SettingError, match='model_args'):
        push_to_hub(model, 'user/name')
    for name in ('name', 'a/b/c', 'user/na me', ''):
        with pytest.raises(SettingError, match='user/name'):
            push_to_hub(small_model(), name)
    assert not hub.repos


def test_fine_tuning_from_the_hub(
        hub: HubServer, tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped(2)
    push_to_hub(model, 'user/base')
    flags = [*SMALL, '--img-size', '160', '--data-dir', str(image_folder), '-b', '8', '--output', str(tmp_path),
             '--lr', '0', '--initial-checkpoint', 'hf-hub:user/base']
    assert train.main([*flags, '--multimix', 'dense', '--experiment', 'a']) == 0
    tuned = load_file(tmp_path / 'a' / 'model' / 'model.safetensors')
    for name, value in unwrap(model).state_dict().items():  # 3 classes instead of 4; with lr 0 the rest stays
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


# ---------------------------------------------------------------------------------------------------------- the card

def test_the_card_tells_what_happened(hub: HubServer, tmp_path: Path) -> None:
    run = a_run(tmp_path / 'run', dataset=None, data_dir=str(tmp_path / 'pets'), recipe='',
                pretrained_path=str(tmp_path / 'start.safetensors'), log=['tensorboard'])
    push_to_hub(run, 'user/pets-vit')
    assert str(tmp_path) not in hub.repos['user/pets-vit'].files()['args.yaml'].decode()
    text = hub.repos['user/pets-vit'].files()['README.md'].decode()
    card = ModelCard(text)
    assert card.data.library_name == 'timm' and card.data.pipeline_tag == 'image-classification'
    assert {'timm', 'timm-multimix', 'dense-multimix', 'arxiv:2311.05538'} <= set(card.data.tags)
    top1, top5 = card.data.eval_results
    assert (top1.dataset_type, top1.dataset_name, top1.metric_type) == ('imagefolder', 'pets', 'accuracy')
    assert (top1.metric_value, top5.metric_value) == (0.5875, 0.915)  # of the weights that are there: the last epoch's
    assert 'after epoch 2 of 3: training has not ended' in text
    assert 'The best epoch was 1, with 61.25 % top-1' in text and '| 58.75 | 91.50 | 1.250 |' in text
    assert 'cat, dog, eel, fox' in text and '![' in text and str(tmp_path) not in text
    assert '--data-dir pets' in text and '--pretrained-path start.safetensors' in text and '--log' not in text
    assert '| effective | 2.0 to 2.0 |' in text


@pytest.mark.parametrize('flags', [
    ['--model', 'test_vit', '--multimix', 'dense'],
    ['--data-dir', '/data/my pets', '-c', 'hparams/cifar10_resnet18.yaml', '--lr', '0.5', '--no-model-ema'],
    ['--data-dir', 'x', '--multimix', 'multimix', '--multimix-alpha', '0.5', '2', '--multimix-layer', 'input', '2',
     '--no-multimix-attention-detach', '--no-aug', '--model-kwargs', 'output_stride=8', '--mean', '0.1', '0.2', '0.3',
     '--opt-betas', '0.8', '0.9', '--torchcompile', '--amp', '--scale', '0.5', '1', '--aa', 'rand-m9-mstd0.5'],
    ['--dataset', 'sklearn/digits', '--multimix', 'none', '--epochs', '300', '--no-sched-on-updates'],
])
def test_the_command_on_the_card_means_what_was_run(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    args = vars(parse_args(flags, train.DIGITS_RECIPE))
    words = shlex.split(train_command(args).replace('\\\n', ' '))
    assert words[:2] == ['python', 'train.py'] and '--multimix' in words
    again = vars(parse_args(words[2:], train.DIGITS_RECIPE))
    machine = {'config', 'recipe', 'workers', 'log_interval', 'checkpoint_hist'}
    assert {k: v for k, v in again.items() if k not in machine} == {k: v for k, v in args.items() if k not in machine}


def test_cards_by_hand_and_licences_stay(hub: HubServer, tmp_path: Path) -> None:
    repo = hub.add('user/name', {'README.md': b'---\nlicense: cc-by-4.0\n---\n'})  # as the Hub's page makes it
    push_to_hub(wrapped(), 'user/name')
    assert MARK in repo.files()['README.md'].decode()
    assert ModelCard(repo.files()['README.md'].decode()).data.license == 'cc-by-4.0'
    by_hand = repo.files()['README.md'].replace(MARK.encode(), b'My own words.')
    repo.commit('main', {**repo.files(), 'README.md': by_hand}, 'edit')
    push_to_hub(wrapped(1), 'user/name')
    assert repo.files()['README.md'] == by_hand


def test_files_of_an_earlier_push_do_not_stay(hub: HubServer, tmp_path: Path) -> None:
    repo = hub.add('user/name', {'notes.txt': b'mine'})
    model = wrapped()
    run = a_run(tmp_path / 'run', model)
    save_plain(model, run / 'model', raw=model)
    push_to_hub(run, 'user/name')
    assert 'raw/model.safetensors' in repo.files()
    push_to_hub(unwrap(model), 'user/name', model_args=model.timm_args)
    assert set(repo.files()) == {'.gitattributes', 'notes.txt', 'README.md', 'config.json', 'model.safetensors'}


def test_tokens_are_never_published(hub: HubServer, tmp_path: Path) -> None:
    run = a_run(tmp_path / 'run', opt_kwargs={'token': TOKEN})
    with pytest.raises(SettingError, match='args.yaml holds something that looks like a token'):
        push_to_hub(run, 'user/name')
    assert 'user/name' not in hub.repos
    assert scrub(f'Bearer {TOKEN} and my-own-secret', 'my-own-secret') == 'Bearer hf_… and hf_…'


def test_finding_checkpoints(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    push_to_hub(wrapped(), 'user/one')
    push_to_hub(wrapped(), 'user/secret', private=True)
    push_to_hub(small_model(), 'user/plain')  # no settings of the method: nothing that from_pretrained could give
    hub.add('else/two', {'README.md': b'---\ntags: [timm-multimix]\n---\n'})
    assert {m.id for m in list_checkpoints()} == {'user/one', 'user/secret', 'else/two'}
    assert {m.id for m in list_checkpoints(author='user', search='one')} == {'user/one'}
    assert hub_main(['list', '--author', 'else']) == 0
    assert capsys.readouterr().out == 'hf-hub:else/two\t0 downloads\n'


# ---------------------------------------------------------------------------------------------- a Hub that misbehaves

@pytest.mark.parametrize('token, name, words', [
    ('', 'user/name', 'The Hub does not know who writes'),
    (READER, 'user/name', 'forbids this token to write to user/name'),
    (TOKEN, 'else/name', 'forbids this token to write to else/name'),
    ('hf_' + 'wrong' * 7, 'user/name', 'does not accept the token'),
])
def test_who_may_push(hub: HubServer, monkeypatch: pytest.MonkeyPatch, token: str, name: str, words: str) -> None:
    monkeypatch.setenv('HF_TOKEN', token)
    hub.add('user/name', {})
    with pytest.raises(HubError, match=words) as caught:
        push_to_hub(small_model(), name)
    assert not caught.value.passing and (not token or token not in str(caught.value))
    assert hub.repos['user/name'].messages == ['initial commit']
    monkeypatch.setenv('HF_TOKEN', '')
    push_to_hub(small_model(), 'user/name', token=TOKEN)  # given, not logged in


def test_private_is_not_taken_for_granted(hub: HubServer) -> None:
    hub.add('user/public', {})
    with pytest.raises(HubError, match='exists and is public'):
        push_to_hub(small_model(), 'user/public', private=True)
    push_to_hub(small_model(), 'user/new', private=True)
    assert hub.repos['user/new'].private and hub.repos['user/public'].messages == ['initial commit']


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
        with pytest.raises(SettingError, match='do not fit each other, or are damaged'):
            from_pretrained('hf-hub:user/bad')
    for yaml_text, words in ((b'mode: dense\nnew_thing: 3\n', "'new_thing' is not a setting"),
                             (b'!!python/object/apply:os.system [echo]', 'cannot be used'), (b'- 1', 'no settings')):
        hub.add('user/bad', {**files, 'multimix.yaml': yaml_text})
        shutil.rmtree(Path(constants.HF_HUB_CACHE), ignore_errors=True)
        with pytest.raises(SettingError, match=words):
            from_pretrained('hf-hub:user/bad')
        assert from_pretrained('hf-hub:user/bad', 'dense').config.mode == 'dense'


@pytest.mark.parametrize('method, path, status', [
    ('POST', '/repos/create', 500), ('POST', '/preupload/', 503), ('POST', '/objects/batch', 500),
    ('PUT', '/upload/', 500), ('POST', '/commit/', 502), ('POST', '/validate-yaml', 500), ('HEAD', '/README', 503)])
def test_a_passing_problem_passes(hub: HubServer, naps: list[float], method: str, path: str, status: int) -> None:
    fault = hub.fail(method, path, status)
    model = wrapped()
    push_to_hub(model, 'user/name')
    assert fault.seen == 1
    assert torch.equal(logits(from_pretrained('hf-hub:user/name')), logits(model))
    assert len(hub.repos['user/name'].messages) == 2


def test_too_many_requests_are_waited_for(hub: HubServer, naps: list[float]) -> None:
    hub.fail('POST', '/repos/create', 429, Retry_After='77')
    hub.fail('POST', '/commit/', 429, RateLimit='"api";r=0;t=55')
    push_to_hub(wrapped(), 'user/name')
    assert 77 in naps and 55 in naps
    hub.fail('HEAD', '/config.json', 429, times=2, RateLimit='"resolvers";r=0;t=44')
    hub.fail('GET', '/lfs/', 429, Retry_After='33')
    from_pretrained('hf-hub:user/name')
    assert max(naps) == 77 and any(44 <= n < 55 for n in naps) and any(33 <= n < 44 for n in naps)
    hub.fail('POST', '/repos/create', 429, times=9, Retry_After='7')
    with pytest.raises(HubError, match=r'too many requests \(429\). Try again in 7 s') as caught:
        push_to_hub(wrapped(), 'user/name')
    assert caught.value.passing and hub.count('POST', '/repos/create') == 3 + 3


def test_an_upload_that_is_cut(hub: HubServer, naps: list[float]) -> None:
    model = wrapped()
    hub.cut('PUT', '/upload/', after=1000)
    hub.cut('POST', '/commit/', after=10)
    push_to_hub(model, 'user/name')
    repo = hub.repos['user/name']
    assert hub.count('PUT', '/upload/') == 2 and hub.count('POST', '/commit/') == 2  # weights went once after the cut
    assert torch.equal(logits(from_pretrained('hf-hub:user/name')), logits(model))

    hub.lose('POST', '/commit/')  # it was done, but nobody said so
    push_to_hub(wrapped(1), 'user/name')
    assert len(repo.messages) == 3
    before = repo.files()
    hub.cut('PUT', '/upload/', after=1000, times=99)
    with pytest.raises(HubError, match='Pushing to user/name failed') as caught:
        push_to_hub(wrapped(2), 'user/name')
    assert caught.value.passing and repo.files() == before


def test_a_download_that_is_cut(hub: HubServer, naps: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, 'DOWNLOAD_CHUNK_SIZE', 10_000)  # 10 MB, more than this file has
    model = wrapped()
    push_to_hub(model, 'user/name')
    fault = hub.cut('GET', '/lfs/', after=0, times=99)
    with pytest.raises(HubError, match='Reading user/name failed'):
        from_pretrained('hf-hub:user/name')
    assert not list(Path(constants.HF_HUB_CACHE).rglob('model.safetensors'))
    fault.times = 0
    hub.cut('GET', '/lfs/', after=100_000)
    assert torch.equal(logits(from_pretrained('hf-hub:user/name')), logits(model))
    ranges = [headers.get('range') for method, path, headers, _ in hub.requests if '/lfs/' in path and method == 'GET']
    assert ranges[-1] == 'bytes=100000-'  # the rest, not all again


def test_a_process_killed_in_the_middle_of_a_download(hub: HubServer, tmp_path: Path) -> None:
    model = wrapped()
    push_to_hub(model, 'user/name')
    fault = hub.stall('GET', '/lfs/', after=100_000)
    process = subprocess.Popen([sys.executable, '-c', "import timm; timm.create_model('hf-hub:user/name', True)"],
                               stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not fault.seen and time.time() < deadline:
        time.sleep(0.05)
    assert fault.seen
    process.kill()
    process.wait()
    fault.gate.set()
    assert not list(Path(constants.HF_HUB_CACHE).rglob('model.safetensors'))
    assert torch.equal(logits(from_pretrained('hf-hub:user/name')), logits(model))


def test_no_network(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped()
    push_to_hub(model, 'user/name')
    from_pretrained('hf-hub:user/name')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    before = len(hub.requests)
    assert torch.equal(logits(from_pretrained('hf-hub:user/name')), logits(model))
    with pytest.raises(HubError, match='HF_HUB_OFFLINE is set, and the cache .* user/other'):
        from_pretrained('hf-hub:user/other')
    with pytest.raises(HubError, match='HF_HUB_OFFLINE is set, and the cache .*revision v2'):
        from_pretrained('hf-hub:user/name', revision='v2')
    next(Path(constants.HF_HUB_CACHE).rglob('model.safetensors')).unlink()
    with pytest.raises(HubError, match='HF_HUB_OFFLINE is set'):
        from_pretrained('hf-hub:user/name')
    for action in (lambda: push_to_hub(model, 'user/name'), list_checkpoints):
        with pytest.raises(HubError, match='HF_HUB_OFFLINE is set'):
            action()
    assert len(hub.requests) == before


def test_a_server_that_is_not_there(hub: HubServer, naps: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', 'http://127.0.0.1:9/{repo_id}/{revision}/{filename}')
    for action in (lambda: push_to_hub(small_model(), 'user/name'), lambda: from_pretrained('hf-hub:user/name'),
                   list_checkpoints):
        with pytest.raises(HubError, match='Connection refused') as caught:
            action()
        assert caught.value.passing


# ---------------------------------------------------------------------------------------------------- while training

def test_a_push_that_fails_stops_nothing(hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fault = hub.fail('POST', '/commit/', 403, times=99)
    flags = ['--model', 'test_resnet', *SMALL, '--output', str(tmp_path), '--experiment', 'x']
    assert train.main([*flags, '--push-to-hub', 'user/name']) == 0
    said = capsys.readouterr()
    assert 'Warning: pushing the last epoch to user/name failed. The Hub forbids' in said.out
    assert TOKEN not in said.out + said.err
    command = next(line.strip() for line in said.out.splitlines() if 'timm_multimix.hub push' in line)
    fault.times = 0
    assert command.startswith('python -m timm_multimix.hub push ')
    assert hub_main(shlex.split(command)[3:]) == 0
    assert torch.equal(logits(timm.create_model('hf-hub:user/name', pretrained=True)),
                       logits(timm.create_model(f'local-dir:{tmp_path}/x/model', pretrained=True)))


def test_pushes_do_not_pile_up(hub: HubServer, tmp_path: Path) -> None:
    run, said = a_run(tmp_path / 'run'), []
    stalled = hub.stall('POST', '/commit/')
    pusher = BackgroundPush('user/name', run, False, said.append)
    try:
        pusher.push('epoch 1')
        deadline = time.time() + 120
        while not stalled.seen and time.time() < deadline:
            time.sleep(0.05)
        for epoch in (2, 3):
            save_plain(wrapped(epoch), run / 'model')
            pusher.push(f'epoch {epoch}')
        save_plain(wrapped(4), run / 'model')  # the run goes on: what waits is what was
        assert len(list(run.glob('.push-*'))) == 2
        pusher.process.kill()
        pusher.process.wait()
        assert pusher.poll() is False and 'epoch 1 to user/name failed' in said[-1]
        pusher.process.wait()
        assert pusher.poll() is True and said[-1].startswith('Pushed epoch 3: ')
    finally:
        stalled.gate.set()
        pusher.close()
    assert hub.repos['user/name'].messages == ['initial commit', 'Push after epoch 3']
    assert torch.equal(logits(from_pretrained('hf-hub:user/name')), logits(wrapped(3)))
    assert not list(run.glob('.push-*'))


@pytest.mark.parametrize('flags, words, env', [
    (['--push-to-hub', 'name'], "--push-to-hub is 'name'", {}),
    (['--push-to-hub', 'else/name'], 'forbids this token to write to else/name', {}),
    (['--push-to-hub', 'user/name'], 'you are not logged in', {'HF_TOKEN': ''}),
    (['--push-to-hub', 'user/public', '--push-private'], 'exists and is public', {}),
    (['--push-every', '2'], 'no --push-to-hub', {}),
    (['--push-to-hub', 'user/name', '--push-every', '0'], '--push-every is 0', {}),
])
def test_what_is_wrong_is_said_before_training(
        hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
        flags: list[str], words: str, env: dict[str, str]) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    hub.add('user/public', {})
    assert train.main(['--model', 'test_resnet', *SMALL, '--output', str(tmp_path), *flags]) == 2
    said = capsys.readouterr()
    assert words in said.err and 'Epoch' not in said.out


def test_offline_and_pushing_contradict(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(SettingError, match='HF_HUB_OFFLINE is set.*push later'):
        BackgroundPush('user/name', tmp_path, False, print)


def test_a_hub_that_is_down_before_training_may_be_up_later(hub: HubServer, tmp_path: Path) -> None:
    hub.fail('POST', '/repos/create', 500)
    said: list[str] = []
    BackgroundPush('user/name', tmp_path, False, said.append).close()
    assert 'status 500' in said[0] and 'Training goes on' in said[0]


# ------------------------------------------------------------------------------------------------ what comes with it

def test_the_checkpoint_that_comes_with_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(f.stat().st_size for f in SHIPPED.iterdir()) < 1_000_000
    monkeypatch.chdir(ROOT)
    model = from_pretrained(f'local-dir:checkpoints/{SHIPPED.name}')
    assert model.config.dense and model.ending.positions > 1
    card = ModelCard.load(SHIPPED / 'README.md')
    _, val_set = create_train_val('sklearn/digits', None, 'train', 'validation')
    data = timm.data.resolve_model_data_config(unwrap(model))
    val_set.transform = timm.data.create_transform(**data, is_training=False)
    images, target = zip(*(val_set[i] for i in range(len(val_set))))
    with torch.no_grad():
        found = model.eval()(torch.stack(images)).argmax(1) == torch.tensor(target)
    assert float(found.float().mean()) == pytest.approx(card.data.eval_results[0].metric_value, abs=0.003)
    words = shlex.split(card.text.split('```sh\n')[1].split('```')[0].replace('\\\n', ' '))
    assert isinstance(parse_args(words[2:]), argparse.Namespace)


def test_looking_before_publishing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / 'run')
    assert hub_main(['export', str(run), str(tmp_path / 'out'), '--name', 'hf-hub:user/name']) == 0
    assert set(os.listdir(tmp_path / 'out')) == {'README.md', 'args.yaml', 'config.json', 'curves.png', 'multimix.yaml',
                                                 'model.safetensors', 'summary.csv'}
    assert "'hf-hub:user/name'" in (tmp_path / 'out' / 'README.md').read_text()
    assert hub_main(['export', str(run), str(tmp_path / 'out')]) == 2
    assert hub_main(['push', str(tmp_path), 'user/name']) == 2
    assert 'HF_HUB_OFFLINE' in capsys.readouterr().err  # as the tests set it


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
