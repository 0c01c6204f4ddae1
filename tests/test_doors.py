"""`timm-multimix COMMAND` and `python -m timm_multimix COMMAND`, in a checkout and from a wheel; recipes by name."""
from __future__ import annotations

import email
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import timm_multimix
from tests import forked
from tests.conftest import ROOT
from timm_multimix import SettingError
from timm_multimix.__main__ import COMMANDS, main
from timm_multimix.runs import recipes
from timm_multimix.runs.recipes import program
from timm_multimix.runs.settings import parse_args

RECIPE = 'cifar10_resnet18'


def python(*args: str, cwd: Path, path: Path, code: int = 0) -> str:
    """What a process prints that finds nothing of ours but in `path`."""
    done = forked.run(*args, cwd=cwd, path=path, bare=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize('command', ['describe', 'advise', 'data', 'push', 'publish', 'export', 'list'])
def test_a_command_says_how_it_is_called(command: str, monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    for started_as, prog in (('/usr/bin/timm-multimix', 'timm-multimix'),
                             ('/x/timm_multimix/__main__.py', 'python -m timm_multimix')):
        monkeypatch.setattr(sys, 'argv', [started_as])
        with pytest.raises(SystemExit, match='0'):
            main([command, '--help'])
        assert capsys.readouterr().out.startswith(f'usage: {prog} {command} ')


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match='0'):
        main(['--help'])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    assert [line[0] for line in lines if line[0] in COMMANDS] == list(COMMANDS)
    for wrong in (['trian'], []):
        with pytest.raises(SystemExit, match='2'):
            main(wrong)
        assert 'COMMAND' in capsys.readouterr().err


def test_a_recipe_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    packaged = ROOT / 'hparams' / f'{RECIPE}.yaml'
    by_path = parse_args(['-c', str(packaged)])
    for name in (RECIPE, f'{RECIPE}.yaml'):
        assert parse_args(['-c', name]) == by_path
    with pytest.raises(SettingError, match=f'no recipe of that name. Did you mean {RECIPE}'):
        parse_args(['-c', 'cifar10_resnt18'])
    with pytest.raises(SettingError, match=f'no such file here. The recipe that came along is -c {RECIPE}'):
        parse_args(['-c', f'elsewhere/{RECIPE}'])
    Path(f'{RECIPE}.yaml').write_text('epochs: 3')  # a file of one's own goes first
    assert parse_args(['-c', f'{RECIPE}.yaml']).epochs == 3
    with pytest.raises(SettingError, match='Did you mean mine.yaml'):
        Path('mine.yaml').touch()
        parse_args(['-c', 'mine.yml'])


def test_a_script_from_elsewhere(tmp_path: Path) -> None:
    done = forked.run('-m', 'timm_multimix', 'evaluate', '--help', cwd=tmp_path)
    assert done.returncode == 0 and 'usage: evaluate.py' in done.stdout


def test_the_command_that_works_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert [shlex.join(program(name)) for name in ('train', 'evaluate', 'push')] == [
        'python train.py', 'python evaluate.py', 'python -m timm_multimix push']
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PATH', str(tmp_path))
    assert program('train') == ['python', str(ROOT / 'train.py')]
    (tmp_path / 'timm-multimix').touch(mode=0o755)
    assert program('train') == ['timm-multimix', 'train']
    monkeypatch.setattr(recipes, 'SCRIPTS', recipes._INSTALLED)
    monkeypatch.setenv('PATH', '')
    assert program('push') == ['timm-multimix', 'push']


@pytest.mark.parametrize('script', ['train.py', 'evaluate.py'])
def test_a_terminal_hears_of_the_loading_first(script: str, tmp_path: Path) -> None:
    """Before torch is imported, which takes seconds; a file hears nothing."""
    (tmp_path / 'torch.py').write_text('import os\nos.write(2, b"torch\\n")\nos._exit(0)\n')
    env = {**os.environ, 'PYTHONPATH': str(tmp_path), 'RANK': '0'}
    ours, theirs = os.openpty()
    try:
        subprocess.run([sys.executable, str(ROOT / script)], stderr=theirs, env=env, check=True, timeout=60)
        said = os.read(ours, 1000).decode().splitlines()
    finally:
        os.close(ours)
        os.close(theirs)
    assert said == ['timm-multimix: loading torch and timm …', 'torch']
    done = subprocess.run([sys.executable, str(ROOT / script)], stderr=subprocess.PIPE, env=env, text=True, timeout=60)
    assert done.stderr == 'torch\n'


@pytest.fixture(scope='module')
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a wheel holds, which was built from what a source distribution holds."""
    where = tmp_path_factory.mktemp('wheel')
    source, empty = where / 'source', where / 'empty'
    for name in ('timm_multimix', 'hparams'):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('pyproject.toml', 'setup.py', 'MANIFEST.in', 'README.md', 'LICENSE', 'train.py', 'evaluate.py'):
        shutil.copy(ROOT / name, source)
    with (source / 'pyproject.toml').open('a') as f:
        f.write("\n[project.urls]\nRepository = 'https://example.org/user/repository/'\n")
    for name in ('small', 'large'):
        shutil.copytree(ROOT / 'checkpoints' / 'test_efficientnet_digits', source / 'checkpoints' / name)
    with (source / 'checkpoints' / 'large' / 'model.safetensors').open('ab') as f:
        f.write(bytes(2_000_000))
    build = 'import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])'
    python('-c', build, 'build_sdist', str(where), cwd=source, path=empty)
    packed, = where.glob('*.tar.gz')
    shutil.unpack_archive(packed, where)
    python('-c', build, 'build_wheel', str(where), cwd=where / packed.name.removesuffix('.tar.gz'), path=empty)
    wheel, = where.glob('*.whl')
    shutil.unpack_archive(wheel, where / 'installed', 'zip')
    return where / 'installed'


def test_the_description_of_a_wheel(installed: Path) -> None:
    """README.md, with absolute links where pyproject.toml names the repository."""
    about = email.message_from_string(next(installed.glob('*.dist-info/METADATA')).read_text())
    assert about['Description-Content-Type'] == 'text/markdown'
    text = about.get_payload()
    at = 'https://example.org/user/repository'
    version = timm_multimix.__version__
    assert f']({at}/raw/v{version}/docs/images/mixing.png)' in text and f']({at}/blob/v{version}/docs/index.md)' in text
    links = re.findall(r'\]\(([^)\s]+)\)', text)
    assert len(links) > 10 and all(link.startswith('https://') for link in links)
    # Nothing else differs, and without an address nothing does.
    readme = (ROOT / 'README.md').read_text()
    assert re.sub(rf'{at}/(raw|blob)/v{version}/', '', text).strip() == readme.strip()
    absolute = runpy.run_path(str(ROOT / 'setup.py'))['absolute']
    assert absolute(readme, '', 'v1') == readme
    assert absolute('[a](b.md#c) ![p](q.png) [h](#h) [m](mailto:x)', at, 'v1') == (
        f'[a]({at}/blob/v1/b.md#c) ![p]({at}/raw/v1/q.png) [h](#h) [m](mailto:x)')


def test_from_a_wheel(installed: Path, tmp_path: Path) -> None:
    about, = metadata.distributions(path=[str(installed)])
    script, = about.entry_points.select(group='console_scripts')
    assert (script.name, script.value) == ('timm-multimix', 'timm_multimix.__main__:main')
    assert sorted(p.name for p in installed.iterdir() if p.suffix != '.dist-info') == ['timm_multimix']
    assert 'usage: evaluate.py' in python('-m', 'timm_multimix', 'evaluate', '--help', cwd=tmp_path, path=installed)
    # Of the models that came along it holds the small ones, and finds them by name.
    code = ('import timm_multimix as t; print([m.name for m in t.list_checkpoints(hub=False)], '
            't.from_pretrained("small").multimix.config.mode)')
    assert python('-c', code, cwd=tmp_path, path=installed) == "['small'] dense\n"
    # It stops before it trains; by then it has read its recipe.
    out = python('-m', 'timm_multimix', 'train', '--batch-size', '5000', cwd=tmp_path, path=installed, code=2)
    assert f'Settings: {installed}/timm_multimix/_scripts/hparams/digits_vit_small.yaml' in out
    assert '--batch-size is 5000, but there are only 1442' in out


@pytest.mark.parametrize('flags, words', [
    (['test_resnet.foo'], 'test_resnet.foo: it cannot be built: '), (['local-dir:/nonexistent'], 'it cannot be built'),
    (['test_resnet', '--img-size', '0'], '--img-size'), (['test_resnet', '--num-classes', '-1'], '--num-classes')])
def test_what_cannot_be_described(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(['describe', *flags])
    except SystemExit as e:
        code = int(str(e.code))
    err = capsys.readouterr().err
    assert code == 2 and words in err and 'Traceback' not in err
