"""All models of a folder to a user's namespace of the Hub."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Optional

from huggingface_hub import CommitInfo, ModelCard

from ..errors import SettingError
from ..files import Paths
from ..runs.recipes import CHECKPOINTS
from .errors import HubError, check_repo_id
from .load import check_whole
from .push import push_to_hub
from .save import CONFIG, WEIGHTS


class Publication(NamedTuple):
    """A model and where it goes."""
    folder: Path
    repo_id: str
    license: Optional[str]
    size: int  # bytes of all its files


def publications(namespace: str, folder: Optional[Paths] = None) -> list[Publication]:
    """What `publish` pushes: each folder in `folder` that holds a model, to a repository of the folder's name.

    Args:
        namespace: a user or organisation of the Hub.
        folder: default the models that came along.

    Raises:
        SettingError: no model there, one that is damaged, or a name that no repository can have.
    """
    root = Path(folder if folder is not None else CHECKPOINTS).expanduser()
    found = [path.parent for path in sorted(root.glob(f'*/{CONFIG}')) if (path.parent / WEIGHTS).is_file()]
    if not found:
        raise SettingError(f'folder is {str(root)!r}, but no folder in it holds a model ({CONFIG} and {WEIGHTS}).')
    done = []
    for model in found:
        check_repo_id(f'{namespace}/{model.name}', 'the repository')
        check_whole(model, str(model))
        done.append(Publication(model, f'{namespace}/{model.name}', _license(model / 'README.md'),
                                sum(file.stat().st_size for file in model.rglob('*') if file.is_file())))
    return done


def publish(namespace: str, folder: Optional[Paths] = None, *, private: Optional[bool] = None,
            token: Optional[str] = None) -> Iterator[tuple[Publication, CommitInfo]]:
    """Push them one after another, each in one commit, as `push_to_hub` does. All are looked at before the first goes.

    Args:
        namespace, folder: as in `publications`.
        private, token: as in `push_to_hub`.

    Yields:
        Each one, and its commit.

    Raises:
        SettingError: as `publications`; `HubError`: the Hub refused one. Those before it are there. What a repository
            holds already is not sent again, so the same call goes on.
    """
    for one in publications(namespace, folder):
        try:
            yield one, push_to_hub(one.folder, one.repo_id, private=private, token=token, license=one.license)
        except HubError as e:
            raise HubError(f'{e}\nThe same command goes on with {one.repo_id}.', e.passing, e.wait) from e


def _license(card: Path) -> Optional[str]:
    if not card.is_file():
        return None
    return getattr(ModelCard(card.read_text(encoding='utf-8'), ignore_metadata_errors=True).data, 'license', None)
