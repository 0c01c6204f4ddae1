"""What pyproject.toml cannot say: a wheel holds the scripts of the repository's root, for `timm-multimix train`."""
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SCRIPTS = ('train.py', 'evaluate.py', 'hparams/*.yaml')


class BuildPy(build_py):
    """Copy the scripts and recipes to timm_multimix/_scripts, as they lie here. An editable install has them here."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        root = Path(__file__).parent
        for path in sorted(p for pattern in SCRIPTS for p in root.glob(pattern)):
            target = Path(self.build_lib, 'timm_multimix', '_scripts', path.relative_to(root))
            self.mkpath(str(target.parent))
            self.copy_file(str(path), str(target))


setup(cmdclass={'build_py': BuildPy})
