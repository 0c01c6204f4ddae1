"""Files that hold anything: each door answers in a sentence that names the file, and runs nothing."""
from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

import evaluate
import train
from tests.conftest import write_images
from timm_multimix import SettingError, from_pretrained
from timm_multimix.evaluate.images import open_split
from timm_multimix.hub.__main__ import main as hub

SMALL = ('--model', 'test_resnet', '--epochs', '1', '-j', '0', '--img-size', '32', '-b', '6', '--warmup-epochs', '0')
FILES = ('model/config.json', 'model/model.safetensors', 'model/multimix.yaml', 'model/raw/model.safetensors',
         'model/raw/config.json', 'args.yaml', 'summary.csv', 'curves.png')
DEEP = {'.json': b'[' * 100_000, '.yaml': b'[' * 1200}


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp('data') / 'images')


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp('runs')
    assert train.main([*SMALL, '--data-dir', str(data), '--output', str(folder), '--experiment', 'x', '--multimix',
                       'multimix', '--model-ema']) == 0
    return folder / 'x'


def damaged(content: bytes, suffix: str) -> list[bytes]:
    """A file cut in half, empty, of zeros, of other bytes, of another form, nested deeply."""
    found = [content[:len(content) // 2], b'', bytes(len(content)), b'\xff\xfe\x00' + content, b'null', b'[1, 2]', b'7',
             b'{"architecture": 3}', b'{"num_classes": "x", "pretrained_cfg": [], "architecture": "test_resnet"}',
             b'epochs: [many]\nrecipe: [1]\nval_split: {}\n', b'epoch,eval_top1\n0,abc\n1,\n', b'mixed_steps: 3\n',
             b'mode: dense\nmixed_steps: {steps: x}\n', b'attention_detach: "no"\n', b'? [a, b]\n: 1\n']
    return [*found, *([DEEP[suffix]] if suffix in DEEP else [])]


@pytest.mark.parametrize('name', FILES)
def test_export_of_a_damaged_run(name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = 0
    for i, content in enumerate(damaged((run / name).read_bytes(), Path(name).suffix)):
        copied = tmp_path / f'run{i}'
        shutil.copytree(run, copied)
        (copied / name).unlink()
        (copied / name).write_bytes(content)
        code = hub(['export', str(copied), str(tmp_path / f'out{i}')])
        error = capsys.readouterr().err
        if code:
            assert code == 2 and error.startswith('hub: error: ') and Path(name).name in error, (content[:40], error)
        assert (tmp_path / f'out{i}').exists() == (code == 0) and not list(tmp_path.glob('.*'))
        refused += bool(code)
    # A table keeps its whole rows, and a picture is not looked into.
    assert bool(refused) == (name not in ('summary.csv', 'curves.png'))


@pytest.mark.parametrize('name', ['model/config.json', 'model/model.safetensors', 'model/multimix.yaml'])
def test_loading_a_damaged_model(
        name: str, run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied = Path(shutil.copytree(run, tmp_path / 'run'))
    refused, contents = 0, damaged((run / name).read_bytes(), Path(name).suffix)
    for i, content in enumerate(contents):
        (copied / name).unlink()
        (copied / name).write_bytes(content)
        try:
            from_pretrained(copied)
        except SettingError as e:
            refused += 1
            assert str(copied) in str(e)  # noqa: PT017
        if name.endswith('.yaml') or i not in (0, 5, 8, len(contents) - 1):  # settings, nothing else reads
            continue
        for code in (evaluate.main([str(copied), '--data-dir', str(data), '--on', 'accuracy', '-j', '0', '--output',
                                    str(tmp_path / 'e')]),
                     train.main([*SMALL[2:], '--data-dir', str(data), '--initial-checkpoint',
                                 f'local-dir:{copied}/model', '--output', str(tmp_path / 'o')])):
            assert code == 2, content[:40]
        assert 'Traceback' not in capsys.readouterr().err, content[:40]
    assert refused >= len(contents) - (2 if name.endswith('.yaml') else 0)


@pytest.mark.parametrize('content, words', [
    (b'[' * 1200, 'nested too deeply'), (b'? [a, b]\n: 1\n', 'a list or a mapping for a key, in line 1'),
    (b'{{a: b}: 1}', 'a list or a mapping for a key'), (b'a: 2024-13-45', 'is not YAML'),
    (b'\xff\xfe: [', 'is not YAML'), (b'!!python/object/apply:os.system [exit]', 'is not YAML')])
def test_yaml_that_is_none(
        content: bytes, words: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / 'x.yaml'
    path.write_bytes(content)
    assert train.main(['-c', str(path)]) == 2
    error = capsys.readouterr().err
    assert words in error and str(path) in error and 'Traceback' not in error
    assert train.main([*SMALL, '--data-dir', str(data), '--class-weight', str(path), '--output', str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f'--class-weight is {str(path)!r}' in error and 'Traceback' not in error


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return open, ('struck', 'w')


@pytest.mark.parametrize('name', ['map.pkl', 'map.PKL', 'map.txt', 'map'])
def test_no_class_map_is_unpickled(
        name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    for folder in (data, tmp_path):
        path = str(tmp_path / name) if folder == data else name
        assert train.main([*SMALL, '--data-dir', str(data), '--class-map', path]) == 2
        with pytest.raises(SettingError):
            open_split('', str(data), 'validation', path)
    assert evaluate.main([str(run), '--data-dir', str(data), '--class-map', str(tmp_path / name), '--on', 'accuracy',
                          '-j', '0']) == 2
    assert not (tmp_path / 'struck').exists()


def test_a_deviation_of_zero(data: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for main, flags in ((train.main, SMALL), (evaluate.main, (str(run), '--on', 'accuracy'))):
        for wrong in (('--std', '0', '0', '0'), ('--std', '0'), ('--mean', 'nan'), ('--std', 'inf', '1', '1')):
            assert main([*flags, '--data-dir', str(data), *wrong]) == 2
            assert f'{wrong[0]} is ' in capsys.readouterr().err


def test_export_touches_nothing_beside_it(run: Path, tmp_path: Path) -> None:
    """Neither a folder of the user's that is called nearly so, nor the weights of the run."""
    mine = [tmp_path / 'out.old' / 'notes.txt', tmp_path / 'out.tmp' / 'notes.txt']
    for path in mine:
        path.parent.mkdir()
        path.write_text('mine')
    assert hub(['export', str(run), str(tmp_path / 'out')]) == 0
    assert [path.read_text() for path in mine] == ['mine', 'mine'] and not list(tmp_path.glob('.*'))
    weights = run / 'model' / 'model.safetensors'
    before = weights.read_bytes()
    with open(tmp_path / 'out' / 'model.safetensors', 'r+b') as file:
        file.write(b'xxxxxxxx')
    assert weights.read_bytes() == before
