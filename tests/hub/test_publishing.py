"""Models that came along, by name; half precision; and all models of a folder to the Hub in one command."""
from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from tests.hub.conftest import SHIPPED, a_run, logits, wrapped
from tests.hub.server import HubServer
from timm_multimix import SettingError, from_pretrained, unwrap
from timm_multimix.hub import HubError, export, publish, save_plain, shipped
from timm_multimix.hub.__main__ import main as hub_main


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder of two models: one with settings of the method, a licence and notes, one without."""
    run = a_run(tmp_path / 'run')
    (run / 'notes.md').write_text('Trained on *few* images.\n')
    root = tmp_path / 'models'
    export(run, root / 'mixed', license='mit')
    save_plain(unwrap(wrapped(3)), root / 'plain')
    (root / 'no_model').mkdir()
    return root


def test_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert torch.equal(logits(from_pretrained(SHIPPED.name)), logits(from_pretrained(SHIPPED)))
    with pytest.raises(SettingError, match=f'neither a folder here nor a model.*{SHIPPED.name}.*Did you mean '
                                           f'{SHIPPED.name}'):
        from_pretrained(SHIPPED.name[:-1])
    with pytest.raises(SettingError, match="'some/name' is no folder here. For the .*hf-hub:some/name"):
        from_pretrained('some/name')
    assert hub_main(['list', '--here']) == 0  # HF_HUB_OFFLINE is set
    assert f'{SHIPPED.name}\tcame along\n' in capsys.readouterr().out
    assert hub_main(['list', '--here', '--author', 'user']) == 2
    save_plain(wrapped(), tmp_path / SHIPPED.name)  # a folder of that name goes first
    assert from_pretrained(SHIPPED.name).num_classes == 6


def test_every_model_that_came_along_loads_in_plain_timm() -> None:
    for name, folder in shipped().items():
        model = timm.create_model(f'local-dir:{folder}', pretrained=True)
        assert logits(model).isfinite().all(), name
        assert ModelCard((folder / 'README.md').read_text()).data.license == 'apache-2.0'
        assert all((folder / file).is_file() for file in ('args.yaml', 'summary.csv')), name


def test_half_precision(tmp_path: Path) -> None:
    run = a_run(tmp_path / 'run')
    before = (run / 'model' / 'model.safetensors').read_bytes()
    folder = export(run, tmp_path / 'half', half=True)
    assert (run / 'model' / 'model.safetensors').read_bytes() == before
    tensors, full = load_file(folder / 'model.safetensors'), load_file(run / 'model' / 'model.safetensors')
    assert {x.dtype for x in tensors.values()} == {torch.float16}
    assert all(torch.equal(tensors[name], full[name].half()) for name in full) and tensors.keys() == full.keys()
    model = timm.create_model(f'local-dir:{folder}', pretrained=True)
    assert next(model.parameters()).dtype == torch.float32
    torch.testing.assert_close(logits(model), logits(from_pretrained(run)), rtol=0.01, atol=0.01)
    assert 'half precision' in (folder / 'README.md').read_text()
    export(run, tmp_path / 'full')
    assert 'half precision' not in (tmp_path / 'full' / 'README.md').read_text()
    large = wrapped()
    with torch.no_grad():
        next(unwrap(large).parameters()).view(-1)[0] = 1e5
    save_plain(large, tmp_path / 'large')
    with pytest.raises(SettingError, match='float16 cannot hold, up to 1e'):
        export(tmp_path / 'large', tmp_path / 'large_half', half=True)
    assert not (tmp_path / 'large_half').exists()
    assert hub_main(['export', str(run), str(tmp_path / 'again'), '--half']) == 0
    assert (tmp_path / 'again' / 'model.safetensors').read_bytes() == (folder / 'model.safetensors').read_bytes()


def test_what_would_be_published(hub: HubServer, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert hub_main(['publish', 'user', '--folder', str(models), '--dry-run', '--private']) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f'{models}/mixed → user/mixed\t') and first.endswith(' MB, licence mit, private')
    assert second.startswith(f'{models}/plain → user/plain\t') and 'licence not stated' in second
    assert not hub.requests and not hub.repos
    assert hub_main(['publish', 'user', '--dry-run']) == 0
    assert f'{SHIPPED} → user/{SHIPPED.name}\t' in capsys.readouterr().out


@pytest.mark.parametrize('namespace, folder, words', [
    ('user', 'mixed', 'no folder in it holds a model'), ('user', 'nowhere', "nowhere', but no folder"),
    ('us er', '', 'user/name'), ('', '', 'user/name'), ('user/x', '', 'user/name')])
def test_what_cannot_be_published(hub: HubServer, models: Path, namespace: str, folder: str, words: str,
                                  capsys: pytest.CaptureFixture[str]) -> None:
    assert hub_main(['publish', namespace, '--folder', str(models / folder)]) == 2
    assert words in capsys.readouterr().err and not hub.repos


def test_publishing_all(hub: HubServer, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert hub_main(['publish', 'user', '--folder', str(models), '--private']) == 0
    assert capsys.readouterr().out.count('Pushed: user/') == 2
    assert set(hub.repos) == {'user/mixed', 'user/plain'} and all(repo.private for repo in hub.repos.values())
    card = hub.repos['user/mixed'].files()['README.md'].decode()
    assert "timm.create_model('hf-hub:user/mixed', pretrained=True)" in card
    assert '## Notes\n\nTrained on *few* images.\n' in card and ModelCard(card).data.license == 'mit'
    assert torch.equal(logits(from_pretrained('hf-hub:user/mixed')), logits(from_pretrained(models / 'mixed')))
    plain = timm.create_model('hf-hub:user/plain', pretrained=True)
    assert torch.equal(logits(plain), logits(wrapped(3)))


def test_a_damaged_model_lets_nothing_go(hub: HubServer, models: Path) -> None:
    (models / 'plain' / 'model.safetensors').write_bytes(b'nothing')
    with pytest.raises(SettingError, match='plain.* is damaged'):
        next(publish('user', models))
    assert not hub.repos


def test_publishing_goes_on_where_it_was_refused(hub: HubServer, models: Path) -> None:
    shutil.copytree(models / 'mixed', models / 'a')
    fault = hub.fail('POST', 'user/mixed/commit/', 403, times=1)
    with pytest.raises(HubError, match='forbids.*\n.*goes on with user/mixed'):
        list(publish('user', models))
    assert fault.seen == 1 and 'model.safetensors' in hub.repos['user/a'].files()
    assert 'user/plain' not in hub.repos
    assert [one.repo_id for one, _ in publish('user', models)] == ['user/a', 'user/mixed', 'user/plain']
    assert all('model.safetensors' in repo.files() for repo in hub.repos.values())
