"""What pyproject.toml cannot say: a wheel holds scripts, recipes and small models of the repository's root, and its
description is README.md with links that lead somewhere from the package index."""
import re
import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.compat.py310 import tomllib

ROOT = Path(__file__).parent
SCRIPTS = ('train.py', 'evaluate.py', 'hparams/*.yaml')
MODEL_BYTES = 2_000_000  # of a model's weights; who wants a larger one clones the repository


class BuildPy(build_py):
    """Copy scripts, recipes and models to timm_multimix/_scripts, as they lie. An editable install has them here."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        found = [path for pattern in SCRIPTS for path in ROOT.glob(pattern)]
        for weights in ROOT.glob('checkpoints/*/model.safetensors'):
            if weights.stat().st_size <= MODEL_BYTES:
                found += [path for path in weights.parent.iterdir() if path.is_file()]
        for path in sorted(found):
            target = Path(self.build_lib, 'timm_multimix', '_scripts', path.relative_to(ROOT))
            self.mkpath(str(target.parent))
            self.copy_file(str(path), str(target))


def absolute(text: str, address: str, tag: str) -> str:
    """Markdown whose relative links and pictures are of a repository's tag; as it is, where there is no address."""
    def link(match: re.Match[str]) -> str:
        words, target = match.groups()
        if not address or re.match(r'\w+:|#', target):
            return match[0]
        return f'{words}({address.rstrip("/")}/{"raw" if words[0] == "!" else "blob"}/{tag}/{target})'
    return re.sub(r'(!?\[[^\]]*\])\(([^)\s]+)\)', link, text)


def description() -> str:
    """README.md, with links to the tag of this version in the repository that pyproject.toml names, if it does."""
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']
    version = runpy.run_path(str(ROOT / 'timm_multimix' / 'version.py'))['__version__']
    return absolute((ROOT / 'README.md').read_text(encoding='utf-8'), project.get('urls', {}).get('Repository', ''),
                    f'v{version}')


if __name__ == '__main__':
    setup(cmdclass={'build_py': BuildPy}, long_description=description(),
          long_description_content_type='text/markdown')
