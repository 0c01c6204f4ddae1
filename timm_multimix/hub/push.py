"""From a model or a run folder to a repository of the Hub, in one commit."""
from __future__ import annotations

import json
import os
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Any, Optional, Union

import timm
import torch
import torch.nn as nn
import yaml
from huggingface_hub import CommitInfo, HfApi, ModelCard, constants
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file, save_file

from ..errors import SettingError, in_words
from ..files import load_yaml, whole, whole_folder
from ..runs.find import model_folder
from ..runs.recipes import program
from ..wrapper import unwrap
from .card import MARK, NOTES, model_card
from .errors import HubError, check_repo_id, hub_error, offline, retried, scrub
from .load import check_whole
from .save import CONFIG, RAW_CONFIG, RAW_WEIGHTS, SETTINGS, WEIGHTS, plain_copy, save_plain, without_place

WAITS = (5.0, 30.0)  # seconds before the second and the third attempt
FROM_A_RUN = ('args.yaml', 'summary.csv', 'curves.png', NOTES)
OURS = (CONFIG, WEIGHTS, RAW_CONFIG, RAW_WEIGHTS, SETTINGS, *FROM_A_RUN)
# Of args.yaml, what says where things lie on a machine, and what would make whoever runs it push to our repository.
_PRIVATE = ('output', 'experiment', 'resume', 'push_to_hub', 'push_every', 'push_private')


def push_to_hub(
        source: Union[nn.Module, str, Path],
        repo_id: str,
        *,
        private: Optional[bool] = None,
        revision: Optional[str] = None,
        token: Optional[str] = None,
        message: str = '',
        license: Optional[str] = None,
        **save: Any,
) -> CommitInfo:
    """Push a model, or the folder of a run of train.py, as a plain timm repository, in one commit.

    `timm.create_model('hf-hub:user/name', pretrained=True)` loads it, without timm_multimix. With the weights go their
    settings, the results of the run and a model card; a card that was written by hand stays. What may pass (too many
    requests, a broken connection, a problem of the Hub) is tried three times; files that have arrived are not sent
    again.

    Args:
        source: a timm model, wrapped or not; or a run folder, or one as `save_plain` writes it.
        repo_id: user/name. Made if there is none.
        private: of a repository that is made. True also refuses to push to a public one that exists.
        revision: a branch, made if there is none; default main.
        token: default the one of `hf auth login` or HF_TOKEN.
        message: of the commit.
        license: of the weights, for the card; default what the card there says.
        **save: for a model, arguments of `save_plain`: data_config, model_args, label_names.

    Returns:
        The commit (`commit_url`, `oid`).

    Raises:
        SettingError: nothing here to push, or a name that cannot be; `HubError`: the Hub refused or was not reached.
    """
    check_repo_id(repo_id)
    if offline():
        raise HubError('HF_HUB_OFFLINE is set, so nothing can be pushed. Unset it and push again.')
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary) / 'repository'
        stage(source, staged, **save)
        return retried(lambda: _push_once(staged, repo_id, private, revision, token, message, license),
                        lambda e: hub_error(e, repo_id, revision, True, token), WAITS)


def export(source: Union[nn.Module, str, Path], folder: Union[str, Path], name: str = '',
           license: Optional[str] = None, *, half: bool = False, **save: Any) -> Path:
    """Write the folder that `push_to_hub` would push, card and all: to look at it first, or to share it otherwise.

    Args:
        source, license, **save: as in `push_to_hub`.
        folder: where to; it must not exist.
        name: how the card loads it; default local-dir:FOLDER.
        half: write the weights as float16, half as large. timm gives them to a float32 model as any others.

    Raises:
        SettingError: as `push_to_hub`; the folder exists; float16 cannot hold a weight.
    """
    folder = Path(folder)
    if folder.exists():
        raise SettingError(f'{folder} exists. Name a folder that does not.')
    with whole_folder(folder) as new:
        stage(source, new, **save)
        for weights in filter(Path.is_file, (new / WEIGHTS, new / RAW_WEIGHTS)):
            if half:
                _halve(weights)
            else:  # the user's from now on, who may write into it
                with whole(weights) as copied:
                    shutil.copyfile(weights, copied)
        (new / 'README.md').write_text(card_of(new, name or f'local-dir:{folder}', license), encoding='utf-8')
    return folder


def stage(source: Union[nn.Module, str, Path], target: Path, **save: Any) -> None:
    """Everything to publish but the card, in a new folder."""
    if isinstance(source, nn.Module):
        _stage_model(source, target, **save)
        return
    run = Path(source).expanduser()
    model = model_folder(run, WEIGHTS)
    if model is None:
        again = f': {shlex.join([*program("train"), "--resume", str(source)])}'
        raise SettingError(f'{str(source)!r} holds no trained model ({CONFIG} and {WEIGHTS}, there or in its folder '
                           f'model/). train.py writes it at the end' + again * (run / 'last.pth.tar').exists() + '.')
    if save:
        raise SettingError(f'{", ".join(save)} is for pushing a model; a run folder has its own {CONFIG}.')
    check_whole(model, str(source))
    target.mkdir(parents=True, exist_ok=True)
    for name in OURS:
        places = (model, model.parent) if model != run and name in FROM_A_RUN else (model,)
        found = next((place / name for place in places if (place / name).is_file()), None)
        if found is None:
            continue
        (target / name).parent.mkdir(exist_ok=True)
        if name == 'args.yaml':
            (target / name).write_text(published_args(found))
        else:
            link(found, target / name)
    check_no_token(target)


def _halve(path: Path) -> None:
    """Write the floats of a safetensors file as float16, to a file of its own: this one may have another name."""
    tensors = load_file(path)
    halved = {name: x.half() if x.is_floating_point() else x for name, x in tensors.items()}
    for name, x in halved.items():
        if not torch.equal(x.isfinite(), tensors[name].isfinite()):
            raise SettingError(f'half is True, but {name} has values that float16 cannot hold, up to '
                               f'{float(tensors[name].abs().max()):.3g}. Leave it out.')
    with whole(path) as new:
        save_file(halved, new, metadata={'format': 'pt'})
        shutil.copymode(path, new)


def published_args(path: Path) -> str:
    """args.yaml without what is about the machine: folders keep their last part only."""
    args = load_yaml(path)
    if not isinstance(args, dict):
        raise SettingError(f'{path} is damaged: it holds no settings.')
    kept = {k: v for k, v in args.items() if k not in _PRIVATE}
    return yaml.safe_dump(_without_places(kept), default_flow_style=False)


def _without_places(value: Any) -> Any:
    """Of every setting: one that takes KEY=VALUE, or a list, may hold a path too."""
    if isinstance(value, dict):
        return {k: _without_places(v) for k, v in value.items()}
    return [_without_places(v) for v in value] if isinstance(value, (list, tuple)) else without_place(value)


def card_of(folder: Path, name: str, license: Optional[str]) -> str:
    """`model_card`, of files that may hold anything."""
    try:
        return model_card(folder, name, license)
    except SettingError:
        raise
    except Exception as e:  # what it is told is text of a user's
        raise SettingError(f'The model card cannot be written: args.yaml holds a value that is none of its setting '
                           f'({type(e).__name__}: {e}).') from e


def check_no_token(folder: Path) -> None:
    """Raise `SettingError` where a file that people read holds something like a token of the Hub."""
    for path in folder.rglob('*'):
        if path.suffix in ('.yaml', '.json', '.csv', '.md') and scrub(text := path.read_text(errors='replace')) != text:
            raise SettingError(f'{path.name} holds something that looks like a token of the Hub, and would have been '
                               f'published. Take it out there.')


def later_command(source: Union[str, Path], repo_id: str, private: bool = False) -> str:
    """What to type to push a run folder afterwards."""
    return f'python -m timm_multimix push {shlex.quote(str(source))} {repo_id}' + (' --private' if private else '')


def create_repo(api: HfApi, repo_id: str, private: Optional[bool]) -> None:
    """Make the repository unless it is there; refuse a public one where a private one is asked for."""
    api.create_repo(repo_id, private=private, exist_ok=True)
    if private and not api.repo_info(repo_id).private:
        raise HubError(f'{repo_id} exists and is public, and private is asked for. Make it private on its page '
                       f'({constants.ENDPOINT}/{repo_id}/settings), or push without it.')


def _stage_model(model: nn.Module, target: Path, **save: Any) -> None:
    plain = unwrap(model)
    if not (hasattr(plain, 'pretrained_cfg') and hasattr(plain, 'num_features') and hasattr(plain, 'num_classes')):
        raise SettingError(f'{type(plain).__name__} is not a model of timm, which could not load it again.')
    save_plain(model, target, **save)
    size = json.loads((target / CONFIG).read_text())['pretrained_cfg']['input_size']
    images = torch.randn(2, *size)
    try:
        again = timm.create_model(f'local-dir:{target}', pretrained=True).eval()
        with torch.no_grad():
            there = again(images)
            here = plain_copy(model).float().eval()(images)
        if not torch.allclose(there, here, rtol=1e-5, atol=1e-6):
            raise ValueError('its logits differ')
    except Exception as e:  # timm raises whatever the architecture raises
        shutil.rmtree(target, ignore_errors=True)
        raise in_words(f'timm does not get this model back from what it was saved as: {e}\n  Give what '
                           f'timm.create_model was given beyond the name, and the images it was trained on: '
                           f"model_args={{'img_size': …}}, data_config={{'input_size': (3, …, …)}}.", e) from e


def _push_once(staged: Path, repo_id: str, private: Optional[bool], revision: Optional[str], token: Optional[str],
               message: str, license: Optional[str]) -> CommitInfo:
    api = HfApi(token=token, library_name='timm', library_version=timm.__version__)
    create_repo(api, repo_id, private)
    if revision:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    (staged / 'README.md').unlink(missing_ok=True)
    theirs = _card_there(api, repo_id, revision)
    if theirs is None or MARK in theirs.content or not theirs.text.strip():
        license = license or (getattr(theirs.data, 'license', None) if theirs else None)
        name = f'hf-hub:{repo_id}' + (f'@{revision}' if revision else '')
        (staged / 'README.md').write_text(card_of(staged, name, license), encoding='utf-8')
        check_no_token(staged)
    stale = [name for name in OURS if not (staged / name).exists()]  # of an earlier push with other settings
    return api.upload_folder(repo_id=repo_id, folder_path=staged, revision=revision, delete_patterns=stale or None,
                             commit_message=message or 'Push a model trained with timm-multimix')


def _card_there(api: HfApi, repo_id: str, revision: Optional[str]) -> Optional[ModelCard]:
    try:
        path = api.hf_hub_download(repo_id, 'README.md', revision=revision)
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError) as e:
        if getattr(e, 'response', None) is None:  # a connection that failed is no answer
            raise
        return None
    return ModelCard(Path(path).read_text(encoding='utf-8'), ignore_metadata_errors=True)


def link(source: Union[str, Path], target: Union[str, Path]) -> None:
    """A copy; of weights, which are replaced and never written into, another name for the same bytes if it can be."""
    if str(source).endswith('.safetensors'):
        try:
            os.link(os.path.realpath(source), target)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, target)
