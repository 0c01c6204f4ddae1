"""Metrics arrive in TensorBoard, wandb and trackio: written by the real packages, on this machine, and read back."""
from __future__ import annotations

import importlib.util
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import train
from timm_multimix import SettingError
from timm_multimix.runs.flags import LOGGERS
from timm_multimix.runs.settings import parse_args
from timm_multimix.runs.summary import read_summary
from timm_multimix.training.checks import check_args
from timm_multimix.training.loggers import open_loggers

ROWS = [{'epoch': e, 'train_loss': 1 / (e + 1), 'eval_top1': 10.0 * e, 'eval_raw_top1': '', 'lr': 0.1}
        for e in range(3)]


@pytest.fixture(autouse=True)
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_SILENT', 'true')


def log_rows(name: str, folder: Path) -> str:
    pytest.importorskip(name)
    folder.mkdir(exist_ok=True)
    logger, = open_loggers([name], folder, {'model': 'resnet18', 'lr': None}, 'digits', ['first', 'second'])
    for row in ROWS:
        logger.log(row['epoch'], row)
    logger.finish()
    return logger.where


def tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(folder / 'tensorboard'))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()['scalars']}


def test_tensorboard(tmp_path: Path) -> None:
    assert str(tmp_path) in log_rows('tensorboard', tmp_path / 'run')
    found = tensorboard(tmp_path / 'run')
    assert set(found) == {'train/loss', 'eval/top1', 'lr'}
    assert found['eval/top1'] == [(0, 0.0), (1, 10.0), (2, 20.0)]


def test_tensorboard_forgets_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    log_rows('tensorboard', tmp_path)
    logger, = open_loggers(['tensorboard'], tmp_path, {}, start_epoch=1)
    logger.log(1, {'epoch': 1, 'eval_top1': 77.0})
    logger.finish()
    assert tensorboard(tmp_path)['eval/top1'] == [(0, 0.0), (1, 77.0)]


def wandb_records(folder: Path) -> list:
    """The protobufs of an offline run, whose last one wandb's own process may write after `finish` has returned."""
    from wandb.proto import wandb_internal_pb2
    path, = (folder / 'wandb').glob('offline-run-*/run-*.wandb')
    found: list = []
    deadline = time.time() + 60
    while not any(r.HasField('exit') for r in found) and time.time() < deadline:
        time.sleep(0.1)
        found = [wandb_internal_pb2.Record.FromString(record) for record in leveldb_records(path.read_bytes())]
    return found


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """Of a LevelDB log: blocks of 32 KiB, and in them parts of records, each behind its checksum, length and kind."""
    at, record = 7, b''
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack('<IHB', data[at:at + 7])
        if at + 7 + length > len(data):  # not written out yet
            return
        record += data[at + 7:at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b''


def test_wandb(tmp_path: Path) -> None:
    assert '--wandb-resume-id' in log_rows('wandb', tmp_path / 'run')
    records = wandb_records(tmp_path / 'run')
    run = next(r.run for r in records if r.HasField('run'))
    assert (run.display_name, run.project, list(run.tags)) == ('run', 'digits', ['first', 'second'])
    assert {u.key: json.loads(u.value_json) for u in run.config.update}['model'] == 'resnet18'
    rows = [{(i.key or i.nested_key[0]): json.loads(i.value_json) for i in r.history.item}
            for r in records if r.HasField('history')]
    assert [row['eval_top1'] for row in rows] == [0, 10, 20]  # the names that timm logs
    assert [row['epoch'] for row in rows] == [row['_step'] for row in rows] == [0, 1, 2]


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    storage = trackio_in(tmp_path, monkeypatch)
    assert 'trackio show --project digits' in log_rows('trackio', tmp_path / 'run')
    assert [row['eval_top1'] for row in storage.get_logs('digits', 'run')] == [0, 10, 20]
    assert '\x1b' not in capsys.readouterr().out  # plain in a file


def trackio_in(folder: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]  # noqa: ANN201
    pytest.importorskip('trackio')
    from trackio import sqlite_storage, utils
    for module in (sqlite_storage, utils):  # read once from TRACKIO_DIR, when it is imported
        if hasattr(module, 'TRACKIO_DIR'):
            monkeypatch.setattr(module, 'TRACKIO_DIR', folder / 'trackio')
    return sqlite_storage.SQLiteStorage


def test_a_run_logs_its_summary_to_all(
        tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip('wandb'), pytest.importorskip('tensorboard')
    storage = trackio_in(tmp_path, monkeypatch)
    assert train.main([
        str(image_folder), '--model', 'test_resnet', '--img-size', '32', '-b', '6', '-j', '0', '--epochs', '2',
        '--warmup-epochs', '0', '--multimix', 'dense', '--log', 'tensorboard', 'trackio', '--log-wandb',
        '--output', str(tmp_path), '--experiment', 'x']) == 0, capsys.readouterr().err
    rows = read_summary(tmp_path / 'x' / 'summary.csv')
    want = [float(row['eval_loss']) for row in rows]
    assert [v for _, v in tensorboard(tmp_path / 'x')['eval/loss']] == pytest.approx(want)
    assert [row['eval_loss'] for row in storage.get_logs('timm-multimix', 'x')] == pytest.approx(want)
    history = [json.loads(i.value_json) for r in wandb_records(tmp_path / 'x') if r.HasField('history')
               for i in r.history.item if (i.key or i.nested_key[0]) == 'eval_loss']
    assert history == pytest.approx(want)


@pytest.mark.parametrize('name', LOGGERS)
def test_a_missing_package_is_named_before_anything_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, 'find_spec', lambda _: None)
    with pytest.raises(SettingError, match=f'--log has {name}, but the package {name} is not installed: pip install'):
        check_args(parse_args(['--log', name]))


def test_a_service_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip('wandb')
    monkeypatch.setattr(wandb, 'init', lambda **_: (_ for _ in ()).throw(RuntimeError('no key')))
    with pytest.raises(SettingError, match='--log has wandb, but it does not start: no key. WANDB_MODE=offline'):
        open_loggers(['wandb'], tmp_path, {})


def test_wandb_resume_id_alone() -> None:
    with pytest.raises(SettingError, match='--wandb-resume-id is'):
        check_args(parse_args(['--log-wandb', '--wandb-resume-id', 'abc']))
