"""The rooms of the package, in layers: nothing imports upward, no two modules import each other in a circle."""
from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

from tests.conftest import ROOT

# Lowest first. A room is a module or a folder of timm_multimix, or a script at the root of the repository. It imports
# from the lines above its own and from itself. A new room gets its place here.
LAYERS = (
    ('errors', 'version'),
    ('files', 'seeding', 'distributed', 'setting'),
    ('config',),
    ('mixing',),
    ('policy', 'heads', 'models'),
    ('teaching',),
    ('stepping', 'huggingface'),
    ('wrapper',),
    ('task',),
    ('data',),
    ('runs',),
    ('hub',),
    ('training',),
    ('evaluate',),
    ('__init__',),
    ('train.py', 'evaluate.py', '__main__', 'describe'),
)
# What functions import, not modules, and why. Nothing of timm_multimix but the first.
LATE = {
    'timm_multimix.mixing.engines.triton_engine': 'Triton is not everywhere, and its engine is made of kernels',
    'sklearn.datasets': 'starts slowly, and only the embedded digits need it',
    'matplotlib': 'starts slowly, and only pictures need it',
    'pycocotools': 'optional, for evaluate.py --on transfer',
    'torchmetrics': 'optional, for evaluate.py --on transfer',
    'wandb': 'optional, for --log',
    'trackio': 'optional, for --log',
    'torch.utils.tensorboard': 'needs the optional tensorboard, for --log',
}
LAYER = {room: i for i, layer in enumerate(LAYERS) for room in layer}
PACKAGE = 'timm_multimix'


class Import(NamedTuple):
    file: str
    line: int
    module: str
    late: bool  # when a function runs

    def __str__(self) -> str:
        return f'{self.file}:{self.line} imports {self.module}'


def modules(root: Path) -> dict[str, Path]:
    """Name → file of the modules of the package and of the scripts beside it."""
    found = {'.'.join(p.relative_to(root).with_suffix('').parts).removesuffix('.__init__'): p
             for p in sorted((root / PACKAGE).rglob('*.py'))}
    return {**found, **{name: root / name for name in ('train.py', 'evaluate.py') if (root / name).exists()}}


def room(module: str) -> str:
    return module if module.endswith('.py') else (module.split('.') + ['__init__'])[1]


def imports(root: Path, name: str, known: dict[str, Path]) -> Iterator[Import]:
    """Every import of a module, wherever in its file it stands, with its full name."""
    path = known[name]
    package = name.split('.') if path.name == '__init__.py' else name.split('.')[:-1]

    def walk(node: ast.AST, late: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(where, child.lineno, alias.name, late) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = '.'.join([*package[:len(package) - child.level + 1], *filter(None, [child.module])]
                                ) if child.level else str(child.module)
                for module in dict.fromkeys(
                        f'{base}.{a.name}' if f'{base}.{a.name}' in known else base for a in child.names):
                    yield Import(where, child.lineno, module, late)
            yield from walk(child, late or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))

    where = str(path.relative_to(root))
    yield from walk(ast.parse(path.read_text()), False)


def problems(root: Path) -> list[str]:
    """What is wrong with the imports of a tree, a sentence each."""
    known = modules(root)
    found: list[str] = []
    graph: dict[str, set[str]] = {}
    for name in known:
        graph[name] = set()
        if room(name) not in LAYER:
            found.append(f'{room(name)} has no layer.')
            continue
        for i in imports(root, name, known):
            ours = i.module.split('.')[0] == PACKAGE
            if i.late and not any(i.module == late or i.module.startswith(late + '.') for late in LATE):
                found.append(f'{i} in a function.')
            if ours:
                graph[name].add(i.module)
                if room(name) != room(i.module) and LAYER.get(room(i.module), -1) >= LAYER[room(name)]:
                    found.append(f'{i}, which is not below it.')
    try:
        TopologicalSorter(graph).prepare()
    except ValueError as e:  # CycleError
        found.append(f'These import each other: {" → ".join(e.args[1])}.')
    return found


def test_nothing_imports_upward() -> None:
    assert problems(ROOT) == []


def test_the_table_is_of_this_tree() -> None:
    rooms = {room(name) for name in modules(ROOT)}
    assert set(LAYER) == rooms and sum(map(len, LAYERS)) == len(LAYER)


def test_what_is_found(tmp_path: Path) -> None:
    files = {'__init__.py': '', 'errors.py': 'from .config import x', 'config.py': 'from timm_multimix import errors',
             'policy.py': 'from .heads import x', 'heads/__init__.py': 'def f():\n    from ..errors import x',
             'task.py': 'def f():\n    import matplotlib.pyplot, json', 'spare.py': '',
             'mixing/__init__.py': 'from . import loss', 'mixing/loss.py': 'from ..mixing import targets'}
    for name, text in files.items():
        path = tmp_path / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = problems(tmp_path)
    assert sorted(found[:-1]) == [
        'spare has no layer.',
        'timm_multimix/errors.py:1 imports timm_multimix.config, which is not below it.',
        'timm_multimix/heads/__init__.py:2 imports timm_multimix.errors in a function.',
        'timm_multimix/policy.py:1 imports timm_multimix.heads, which is not below it.',
        'timm_multimix/task.py:2 imports json in a function.']
    assert found[-1].startswith('These import each other: timm_multimix.')
