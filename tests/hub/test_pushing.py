"""Who may push what, when it is said, and pushing while training goes on."""
from __future__ import annotations

import shlex
import shutil
import time
from pathlib import Path

import pytest
import timm
import torch
import yaml
from huggingface_hub import constants

import train
from tests.hub.conftest import SMALL, a_run, logits, small_model, wrapped
from tests.hub.server import READER, TOKEN, HubServer
from timm_multimix import MultiMixConfig, SettingError, from_pretrained, push_to_hub, unwrap
from timm_multimix.hub import BackgroundPush, HubError, save_plain
from timm_multimix.hub.__main__ import main as hub_main
from timm_multimix.hub.errors import scrub
from timm_multimix.hub.push import export, later_command, published_args
from timm_multimix.hub.save import settings_text


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


def test_a_push_that_fails_stops_nothing(
        hub: HubServer, tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fault = hub.fail('POST', '/commit/', 403, times=99)
    flags = ['--model', 'test_resnet', *SMALL, '--data-dir', str(image_folder), '-b', '6', '--output', str(tmp_path),
             '--experiment', 'x']
    assert train.main([*flags, '--push-to-hub', 'user/name']) == 0
    said = capsys.readouterr()
    assert 'Warning: pushing the last epoch to user/name failed. The Hub forbids' in said.out
    assert TOKEN not in said.out + said.err
    command = next(line.strip() for line in said.out.splitlines() if 'timm_multimix push' in line)
    fault.times = 0
    assert command.startswith('python -m timm_multimix push ')
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


def test_paths_are_private_wherever_a_setting_holds_them(tmp_path: Path) -> None:
    place = str(tmp_path / 'secret' / 'x.pth')
    run = a_run(tmp_path / 'run', model_kwargs={'checkpoint_path': place, 'depth': 2}, log=[place, 'tensorboard'],
                teacher=f'local-dir:{place}')
    published = yaml.safe_load(published_args(run / 'args.yaml'))
    assert published['model_kwargs'] == {'checkpoint_path': 'x.pth', 'depth': 2}
    assert published['log'] == ['x.pth', 'tensorboard'] and published['teacher'] == 'x.pth'
    assert published['model'] == 'test_vit' and published['epochs'] == 3
    assert 'secret' not in (export(run, tmp_path / 'out') / 'README.md').read_text()


def test_the_command_that_pushes_later_can_be_pasted() -> None:
    words = shlex.split(later_command(Path('my runs') / "it's", 'user/name', private=True))
    assert words[3:] == ['push', "my runs/it's", 'user/name', '--private']


def test_where_a_teacher_lies_is_private(tmp_path: Path) -> None:
    model = timm.create_model('test_resnet', num_classes=3)
    for teacher in (str(tmp_path / 'secret' / 'teacher'), f'local-dir:{tmp_path}/secret/teacher'):
        config = MultiMixConfig('dense', teacher=teacher)
        assert yaml.safe_load(settings_text(config))['teacher'] == 'teacher'
        save_plain(model, tmp_path / 'run' / 'model', config=config)
        settings = {'model': 'test_resnet', 'multimix_teacher': teacher}
        (tmp_path / 'run' / 'args.yaml').write_text(yaml.safe_dump(settings))
        export(tmp_path / 'run', tmp_path / 'out')
        for path in (tmp_path / 'out').rglob('*'):
            assert not path.is_file() or b'secret' not in path.read_bytes(), path
        shutil.rmtree(tmp_path / 'out')
