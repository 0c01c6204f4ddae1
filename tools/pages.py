"""What mkdocs.yml needs beside docs/: the pages outside of it, and one of the public names. `make docs`"""
from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
# Pages that lie elsewhere, and what they are called on the site.
OUTSIDE = {'README.md': 'front.md', 'hparams/README.md': 'recipes.md', 'CONTRIBUTING.md': 'contributing.md',
           'CHANGELOG.md': 'changes.md', 'examples/photographs.ipynb': 'photographs.md'}


def public_names() -> list[str]:
    """`__all__` of the package, without importing it."""
    for node in ast.parse((ROOT / 'timm_multimix' / '__init__.py').read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '__all__':
            return [name for name in ast.literal_eval(node.value) if not name.startswith('_')]
    raise ValueError('timm_multimix/__init__.py has no __all__')


def relink(text: str, folder: str) -> str:
    """Make the links of a page in `folder` lead to pages of the site, and to nothing where there is no such page."""
    def link(match: re.Match[str]) -> str:
        words, target = match.groups()
        path, _, anchor = target.partition('#')
        if not path or re.match(r'\w+:', target) or path.startswith('output_'):  # a notebook's pictures
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, path))
        page = OUTSIDE.get(path, path.removeprefix('docs/') if path.startswith('docs/') else '')
        return f'[{words}]({page}{"#" + anchor if anchor else ""})' if page else words
    return re.sub(r'\[([^\]]*)\]\(([^)\s]+)\)', link, text)


def of_notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by name."""
    text, resources = MarkdownExporter().from_filename(str(path))
    return text, resources['outputs']


def on_files(files: Files, config: Any) -> Files:
    for path, name in OUTSIDE.items():
        text, pictures = (ROOT / path).read_text(), {}
        if path.endswith('.ipynb'):
            text, pictures = of_notebook(ROOT / path)
        text = relink(text, posixpath.dirname(path))
        for picture, content in pictures.items():
            files.append(File.generated(config, picture, content=content))
        files.append(File.generated(config, name, content=text))
    text = '# Python\n\n' + '\n\n'.join(f'::: timm_multimix.{name}' for name in public_names()) + '\n'
    files.append(File.generated(config, 'python.md', content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    return markdown if page.file.src_uri in OUTSIDE.values() else relink(markdown, 'docs')
