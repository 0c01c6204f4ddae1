"""A network that fails: what passes is waited for, and what does not is said."""
from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from tests import forked
from tests.hub.conftest import logits, small_model, wrapped
from tests.hub.server import HubServer
from timm_multimix import from_pretrained, list_checkpoints, push_to_hub
from timm_multimix.hub import HubError
from timm_multimix.hub.errors import hub_error


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
    with forked.start('-c', "import timm; timm.create_model('hf-hub:user/name', True)", bare=True) as process:
        deadline = time.time() + 120
        while not fault.seen and time.time() < deadline:
            time.sleep(0.05)
        assert fault.seen and process.poll() is None
    assert process.wait() == -signal.SIGKILL
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


def test_no_part_of_a_token_is_told() -> None:
    for filler in range(270, 300):
        told = str(hub_error(RuntimeError('x' * filler + ' hf_' + 'A' * 34), 'user/name', token='hf_' + 'A' * 34))
        assert 'A' not in told
