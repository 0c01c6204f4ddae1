"""The documents name what exists: files, sections, commands, flags, functions and figures."""
from __future__ import annotations

import contextlib
import functools
import io
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import timm
import yaml

import timm_multimix
from tests.conftest import ROOT
from timm_multimix import SettingError
from timm_multimix.evaluate.flags import build_parser as evaluate_parser
from timm_multimix.runs.flags import build_parser as train_parser
from timm_multimix.runs.recipes import find_recipe
from timm_multimix.runs.yaml_file import read_yaml

PAGES = [*(ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'hparams/README.md')),
         *sorted(ROOT.glob('docs/*.md'))]
FENCE = re.compile(r'^( *)```(\w*)\n(.*?)^ *```', re.M | re.S)


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub('', page.read_text())


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    found: set[str] = set()
    for title in re.findall(r'^#+ (.+)$', prose(page), re.M):
        slug = re.sub(r'[^\w\- ]', '', title.lower()).strip().replace(' ', '-')
        found.add(next(s for s in (slug, *(f'{slug}-{i}' for i in range(1, 100))) if s not in found))
    return found


@pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r'\]\(([^)\s]+)\)', prose(page)):
        if re.match(r'\w+:', link):
            continue
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f'{link}: {sorted(anchors(target))}'


def test_the_index_leads_to_every_page() -> None:
    links = set(re.findall(r'\]\((\w+\.md)', (ROOT / 'docs' / 'index.md').read_text()))
    assert links == {path.name for path in ROOT.glob('docs/*.md')} - {'index.md'}


def commands(page: Path) -> list[str]:
    """Every command in a page's blocks of shell, and in spans of code that begin with python or pytest."""
    lines = re.findall(r'`((?:python|pytest) [^`]+)`', prose(page))
    for _, language, block in FENCE.findall(page.read_text()):
        if language == 'sh':
            block = re.sub(r"<<'END'\n.*?^END$", '', block, flags=re.M | re.S)
            lines += block.replace('\\\n', ' ').splitlines()
    return [line for line in dict.fromkeys(lines) if shlex.split(line, comments=True)]


@functools.cache
def help_of(*words: str) -> str:
    """What `python -m words --help` prints."""
    module, *rest = words
    out = io.StringIO()
    with pytest.raises(SystemExit) as e, contextlib.redirect_stdout(out), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [module, *rest, '--help'])
        runpy.run_module(module, run_name='__main__', alter_sys=True)
    assert not e.value.code
    return out.getvalue()


def check_command(words: list[str]) -> None:
    """Fail, or exit, if there is no such program, file, recipe, model or flag."""
    words = [word for word in words if word != '…']
    if words[0] == 'torchrun':
        words = ['python', *words[next(i for i, word in enumerate(words) if word.endswith('.py')):]]
    program, *rest = words
    program = program.removeprefix('.venv/bin/')
    if '/' in program:
        assert (ROOT / program).is_file() and not rest
        return
    assert program in ('python', 'pytest', 'make', 'pip', 'hf', '.', 'export')
    if program == 'make':
        assert set(rest) <= set(re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.M))
    elif program == 'pip':
        extras = {name for word in rest for names in re.findall(r'\[([\w,]+)\]', word) for name in names.split(',')}
        assert extras <= set(re.findall(r'^(\w+) = \[', (ROOT / 'pyproject.toml').read_text(), re.M))
    elif program == 'pytest' or rest[:2] == ['-m', 'pytest']:
        for path, _, test in (word.partition('::') for word in rest if word.startswith('tests/')):
            assert (ROOT / path).exists() and (not test or f'def {test}(' in (ROOT / path).read_text())
    elif rest[0] == 'train.py':
        args = train_parser().parse_args(rest[1:])
        assert args.model.isupper() or ':' in args.model or timm.is_model(args.model)
        if (args.config or '').startswith('hparams/'):
            read_yaml(find_recipe(str(ROOT / args.config)), train_parser())
    elif rest[0] == 'evaluate.py':
        evaluate_parser().parse_args(rest[1:])
    elif rest[0] == '-m':
        flags = [word for word in rest[1:] if word.startswith('--')]
        shown = help_of(*rest[1:rest.index(flags[0])] if flags else rest[1:])
        assert [flag for flag in flags if not re.search(rf'{flag}\b', shown)] == []
        assert all((ROOT / word).exists() for word in rest if word.startswith('benchmarks/'))
    elif rest[0] not in ('-', '-c', 'inference.py') and program == 'python':  # the last is timm's
        assert (ROOT / rest[0]).is_file()


@pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_can_be_typed(page: Path) -> None:
    for line in commands(page):
        try:
            check_command(shlex.split(line, comments=True))
        except (AssertionError, SystemExit, SettingError) as e:
            pytest.fail(f'{line}\n{e!r}')


@pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_names_what_there_is(page: Path) -> None:
    for _, language, code in FENCE.findall(page.read_text()):
        if language == 'python':
            compile(code.replace('…', '...'), str(page), 'exec')
        for name in re.findall(r'\btimm_multimix\.(\w+)', code if language in ('python', 'diff') else ''):
            assert hasattr(timm_multimix, name), name


@pytest.mark.parametrize('page, of', [('README.md', 'studies'), ('docs/results.md', '*stud*'),
                                      ('docs/finetuning.md', 'finetuning_study')])
def test_figures_are_those_of_the_studies(page: str, of: str) -> None:
    figures = re.findall(r'[+-]?\d+\.\d{2}\b(?: \[[^\]]+\])?(?!×)', ''.join(
        line for line in (ROOT / page).read_text().splitlines(keepends=True) if line.lstrip().startswith('|')))
    studies = ''.join(found.read_text() for found in (ROOT / 'docs').glob(f'{of}.md'))
    assert len(figures) > 5 and [x for x in figures if x not in studies] == []


def test_a_version_is_the_same_everywhere() -> None:
    newest = re.findall(r'^## (\S+) \((.+)\)$', (ROOT / 'CHANGELOG.md').read_text(), re.M)[0]
    cited = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert newest[0] == cited['version'] == timm_multimix.__version__
    assert ('date-released' in cited) == (newest[1] != 'unreleased')
