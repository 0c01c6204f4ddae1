"""From a repository of the Hub, or a folder, to a model; and what there is on the Hub."""
from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import timm
import torch.nn as nn
from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError, safe_open
from timm.models import get_pretrained_cfg
from timm.models._hub import load_model_config_from_path

from ..config import MultiMixConfig
from ..data.factory import CHANNELS
from ..errors import SettingError, in_words, nearest, reason
from ..files import load_json, load_yaml
from ..runs.find import is_repo, model_folder
from ..runs.recipes import CHECKPOINTS
from ..wrapper import MultiMixModel, wrap
from .card import TAG
from .errors import HubError, check_network, check_repo_id, hub_error, offline
from .save import CONFIG, COUNTS, MODE, RAW, RAW_CONFIG, RAW_WEIGHTS, SETTINGS, WEIGHTS

_OF_TIMM = (WEIGHTS, 'pytorch_model.bin', 'open_clip_model.safetensors', 'open_clip_pytorch_model.bin')
_PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl', '.tar')


def from_pretrained(
        name: Union[str, Path],
        config: Union[str, MultiMixConfig, None] = None,
        *,
        revision: Optional[str] = None,
        token: Optional[str] = None,
        raw: bool = False,
        num_classes: Optional[int] = None,
        **settings: Any,
) -> MultiMixModel:
    """A trained model with the settings it was trained with, wrapped to go on training.

        model = timm_multimix.from_pretrained('hf-hub:user/name')
        model(images, target).loss.backward()

    Only safetensors and text are read, never a pickle or code of the repository. For a model without the method,
    `timm.create_model('hf-hub:user/name', pretrained=True)` does.

    Args:
        name: hf-hub:user/name (or user/name@revision), local-dir:FOLDER, a folder (of a run, or as `save_plain` writes
            it), or the name of a model that came along (`list_checkpoints`). A folder of that name goes first.
        config: other settings than those of the repository: as `wrap` takes them.
        revision: branch, tag or commit on the Hub; default main.
        token: default the one of `hf auth login` or HF_TOKEN.
        raw: the last weights, where the model's own are averaged (EMA).
        num_classes: another number of classes, for which the classifier starts afresh.
        **settings: changes to the settings, as in `wrap`: n=500, effective=2, …

    Raises:
        SettingError: no such folder, weights that are no safetensors or do not fit, no settings there and none given;
            `HubError`: the Hub refused or was not reached, or the cache does not hold it and HF_HUB_OFFLINE is set.
    """
    if not isinstance(name, (str, Path)) or not str(name):
        raise SettingError(f'name is {name!r}, but it must be hf-hub:user/name, local-dir:FOLDER, a folder, or the '
                           f'name of a model that came along.')
    folder = fetch(name, revision, token, RAW_WEIGHTS if raw else WEIGHTS)
    if config is None:
        config = _settings(folder, name)
        if num_classes is not None and config.class_weight is not None and len(config.class_weight) != num_classes:
            config = config.replace(class_weight=None)  # they were of other classes
        if config.teacher is not None and settings.get('teacher') is None:
            if 'teacher' not in settings:
                warnings.warn(f'{str(name)!r} was trained with the teacher {config.teacher!r}, which is not in it: it '
                              f'goes on without one. from_pretrained(…, teacher={config.teacher!r}) keeps it.',
                              stacklevel=2)
            config = config.replace(teacher=None)
    plain = _create(folder / RAW if raw else folder, name, num_classes)
    plain.pretrained_cfg.pop('file', None)  # type: ignore[operator, union-attr]  # nothing is to be found there later
    wrapped = wrap(plain, config, **settings)
    wrapped.multimix.input_img_mode = mode_of(folder)
    return wrapped


def trained_model(name: str) -> nn.Module:
    """A plain timm model with its weights: hf-hub:user/name, local-dir:FOLDER, a folder (of a run, too), the name of a
    model that came along, or a name of timm, whose published weights it gets.

    Raises:
        SettingError: there is none, or it has no weights; `HubError`: the Hub refused or was not reached.
    """
    if ':' in name or Path(name).expanduser().is_dir() or name in shipped():
        return _create(fetch(name), name, None)
    if not timm.is_model(name.partition('.')[0]):
        raise SettingError(f'{name!r} is no folder here, and timm has no such model.'
                           f'{nearest(name, timm.list_models())}')
    check_published(name, {})
    try:
        return timm.create_model(name, pretrained=True)
    except Exception as e:  # timm and the hub raise many kinds
        raise in_words(f'The weights of {name!r} cannot be loaded: {reason(e)}', e) from e


class ListedModel(NamedTuple):
    """A trained model that can be had.

    Attributes:
        name: as `from_pretrained` takes it.
        source: as `timm.create_model` takes it: hf-hub:user/name, or local-dir:FOLDER.
        downloads: of the last month on the Hub; None for a model that came along.
    """
    name: str
    source: str
    downloads: Optional[int] = None


def shipped() -> dict[str, Path]:
    """Name → folder of the models that came along: those of checkpoints/, of which a wheel holds the small ones."""
    return {path.parent.name: path.parent for path in sorted(CHECKPOINTS.glob(f'*/{CONFIG}'))
            if (path.parent / WEIGHTS).is_file()}


def list_checkpoints(author: Optional[str] = None, search: Optional[str] = None, limit: Optional[int] = None,
                     token: Optional[str] = None, *, hub: bool = True) -> list[ListedModel]:
    """Models that came along, and models on the Hub that `push_to_hub` pushed with settings of the method.

    Args:
        author: a user or organisation of the Hub. Where it is given, models that came along are left out.
        search: words in the name.
        limit: how many of the Hub at most, the most downloaded first.
        token: default the one of `hf auth login` or HF_TOKEN; private models are listed to those who may see them.
        hub: False lists those that came along, without a network.

    Returns:
        What there is; `from_pretrained(found.name)` loads one.

    Raises:
        SettingError: author, limit or token with hub=False; `HubError`: the Hub cannot be asked.
    """
    here = [] if author else [ListedModel(name, f'local-dir:{folder}') for name, folder in shipped().items()
                              if all(word.lower() in name.lower() for word in (search or '').split())]
    if not hub:
        for setting, value in (('author', author), ('limit', limit), ('token', token)):
            if value is not None:
                raise SettingError(f'{setting} is given with hub=False, but it is about the Hub. Leave one out.')
        return here
    if offline():
        raise HubError('HF_HUB_OFFLINE is set, and the Hub cannot be searched without a network. Unset it, or list '
                       'what came along: hub=False.')
    try:
        found = HfApi(token=token).list_models(filter=TAG, author=author, search=search, sort='downloads', limit=limit)
        models = sorted(found, key=lambda info: -(info.downloads or 0))
    except Exception as e:  # of huggingface_hub or of its HTTP client
        raise hub_error(e, f'the models of {author}' if author else 'the list of models', token=token) from e
    return here + [ListedModel(f'hf-hub:{m.id}', f'hf-hub:{m.id}', m.downloads or 0) for m in models]


def starting_point(args: argparse.Namespace) -> tuple[Optional[str], dict[str, Any]]:
    """What `--initial-checkpoint`, or `--model` with `--pretrained`, names where that is a repository or a folder.

    Returns:
        A name for timm.create_model, whose weights are there and are safetensors, and the arguments it was built with,
        but for num_classes; `args` then says the same in the way it is saved. (None, {}) for a file, a name of timm, or
        nothing.
    """
    repo = next(filter(is_repo, (args.initial_checkpoint, args.model if args.pretrained else '')), None)
    if repo is None:
        return None, {}
    if not repo.startswith('local-dir:'):
        repo_id, _, revision = repo.partition(':')[2].partition('@')
        repo_id = check_repo_id(repo_id, 'the repository')
        if try_to_load_from_cache(repo_id, CONFIG, revision=revision or None) is None:
            try:
                check_network()
            except HubError as e:
                raise HubError(f'{repo} is not in the cache of huggingface_hub, and {e}. Without a network: copy the '
                               f'repository to a folder and name that: local-dir:FOLDER.', e.passing) from e
    folder = fetch(repo)
    architecture, model_args = read_config(folder, repo)
    if not is_repo(args.model) and args.model.partition('.')[0] != architecture.partition('.')[0]:
        raise SettingError(f'--model is {args.model}, but --initial-checkpoint {repo} is a {architecture}: leave '
                           f'--model out.')
    # So that args.yaml says it again: where the weights come from, and not those that timm has for the architecture.
    args.model, args.pretrained = architecture, False
    args.in_chans = args.in_chans or model_args.get('in_chans')
    mode = mode_of(folder)
    if args.input_img_mode is None and mode is not None and CHANNELS[mode] == (args.in_chans or 3):
        args.input_img_mode = mode
    args.initial_checkpoint = repo if not repo.startswith('local-dir:') else f'local-dir:{folder.resolve()}'
    return f'local-dir:{folder}', {k: v for k, v in model_args.items() if k != 'num_classes'}  # the data set decides


def check_published(model: str, overlay: Mapping[str, Any]) -> None:
    """Find out at once whether the published weights of a timm model can be had.

    Args:
        model: its name, with a tag or without.
        overlay: what replaces parts of its pretrained_cfg.

    Raises:
        HubError: neither the cache of huggingface_hub holds them nor can the Hub be reached.
    """
    found = get_pretrained_cfg(model)
    cfg = {**(found.to_dict() if found is not None else {}), **overlay}
    repo_id = cfg.get('hf_hub_id')
    if not repo_id or cfg.get('file') or cfg.get('state_dict') is not None:  # timm says what is wrong, if anything is
        return
    files = [cfg['hf_hub_filename']] if cfg.get('hf_hub_filename') else _OF_TIMM
    if any(isinstance(try_to_load_from_cache(repo_id, file), str) for file in files):
        return
    try:
        check_network()
    except HubError as e:
        raise HubError(
            f'--pretrained is on, but the weights of {model} ({repo_id} on the Hub) are not in the cache '
            f'({constants.HF_HUB_CACHE}), and {e}. Without a network: --pretrained-path FILE takes weights of this '
            f'model from a file, --initial-checkpoint those of a file, a run or a folder; or fill the cache elsewhere '
            f'and copy it here (HF_HUB_CACHE).', e.passing) from e


def fetch(name: Union[str, Path], revision: Optional[str] = None, token: Optional[str] = None,
          weights: str = WEIGHTS) -> Path:
    """The folder with `config.json` and the weights, downloaded if they are on the Hub: all of one commit.

    Args:
        name, revision, token: as in `from_pretrained`.
        weights: file name of the weights, a safetensors file.
    """
    kind, _, rest = str(name).partition(':')
    if kind in ('hf-hub', 'hf_hub'):
        repo_id, _, at = rest.partition('@')
        if at and revision and at != revision:
            raise SettingError(f'{name!r} names the revision {at!r}, and revision is {revision!r}: give one.')
        folder = _download(check_repo_id(repo_id, 'the repository'), at or revision, token, weights)
    else:
        given = Path(rest if kind == 'local-dir' else name).expanduser()
        if not given.is_dir():
            given = _shipped(str(name))
        if revision is not None:
            raise SettingError(f'revision is {revision!r}, but {str(name)!r} is a folder, which has none.')
        folder = model_folder(given) or given
        if not (folder / weights).is_file() and (folder / CONFIG).is_file():
            raise _no_weights(str(name), weights, [f.name for f in folder.iterdir()])
    check_files(folder, str(name), weights)
    return folder


def _shipped(name: str) -> Path:
    """The folder of a model that came along.

    Raises:
        SettingError: there is none of that name.
    """
    known = shipped()
    if name in known:
        return known[name]
    if '/' in name or ':' in name:
        hint = f' For the repository of the Hub: hf-hub:{name}' if name.count('/') == 1 else ''
        raise SettingError(f'{name!r} is no folder here.{hint}')
    raise SettingError(f'{name!r} is neither a folder here nor a model that came along: '
                       f'{", ".join(known) or "none did"}.{nearest(name, known)} A wheel holds the small ones alone; a '
                       f'clone of the repository holds all.')


def check_files(folder: Path, name: str, weights: str = WEIGHTS) -> None:
    """Raise `SettingError` where config.json or the weights, which need not be there, are damaged or do not fit.

    A config.json that names another number of classes than its weights have would give a random classifier.
    """
    read_config(folder, name)
    if not (folder / weights).is_file():
        return
    config = load_json(folder / CONFIG)
    cfg = config.get('pretrained_cfg') or {}
    layers = cfg.get('classifier')  # a name, or several
    try:
        with safe_open(folder / weights, 'pt') as f:  # type: ignore[no-untyped-call]
            found = {f.get_slice(key).get_shape()[0] for layer in (layers if isinstance(layers, list) else [layers])
                     if (key := f'{layer}.weight') in f.keys()}
    except (OSError, SafetensorError) as e:
        raise SettingError(f'{weights} of {name!r} is damaged: {e}.') from e
    said = [part['num_classes'] for part in (config, cfg, config.get('model_args')) if part and part.get('num_classes')]
    if len(found) == 1 and (wrong := [n for n in said if n not in found]):
        raise SettingError(f'{name!r} is damaged: {CONFIG} says num_classes {wrong[0]}, but the classifier in '
                           f'{weights} has {found.pop()}.')


def check_whole(folder: Path, name: str) -> None:
    """Look at what `save_plain` wrote to a folder before it is published.

    Raises:
        SettingError: a file is damaged.
    """
    for part in (folder, *([folder / RAW] if (folder / RAW_WEIGHTS).is_file() else [])):
        check_files(part, str(part))
    if (folder / SETTINGS).is_file():
        _settings(folder, name)


def read_config(folder: Path, name: str = '') -> tuple[str, dict[str, Any]]:
    """Architecture and arguments of timm.create_model, by a config.json.

    Raises:
        SettingError: there is none, it is not one of timm, or this timm has no such architecture.
    """
    name = name or str(folder)
    if not (folder / CONFIG).is_file():
        raise SettingError(f'{name!r} has no {CONFIG}: it is not a model that timm can load.')
    try:
        _, architecture, model_args = load_model_config_from_path(str(folder))
        config = load_json(folder / CONFIG)
        for key, kind in (
                ('architecture', str), ('pretrained_cfg', dict), ('model_args', dict), ('num_classes', int)):
            if not isinstance(config.get(key, kind()), (kind, type(None))):
                raise TypeError(f'{key} is {config[key]!r:.80}')
    except Exception as e:  # broken bytes break the reader in any way
        raise SettingError(f'{CONFIG} of {name!r} is not one of timm: {type(e).__name__}: {e}') from e
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise SettingError(f'{name!r} is a {architecture!r}, which timm {timm.__version__} does not have. A newer timm '
                           f'may, or the package that it comes from, imported first.')
    return architecture, dict(model_args or {})


def mode_of(folder: Path) -> Optional[str]:
    """The mode of Pillow's of the images that a checkpoint was trained on; None where its config.json does not say."""
    try:
        mode = load_json(folder / CONFIG).get(MODE)
    except (SettingError, AttributeError):  # whoever loads it says what is wrong
        return None
    return mode if isinstance(mode, str) and mode in CHANNELS else None


def _download(repo_id: str, revision: Optional[str], token: Optional[str], weights: str) -> Path:
    name = f'hf-hub:{repo_id}' + (f'@{revision}' if revision else '')

    def get(file: str, commit: Optional[str]) -> Path:
        return Path(hf_hub_download(repo_id, file, revision=commit, token=token))

    def all_files() -> Path:
        commit = revision
        try:
            folder = get(CONFIG, commit).parent
            commit = folder.name  # so that what is pushed meanwhile does not come into it
            for file in (weights, *((RAW_CONFIG,) if weights == RAW_WEIGHTS else ())):
                get(file, commit)
        except EntryNotFoundError as e:
            if getattr(e, 'response', None) is None:  # a connection that failed is no answer
                raise
            files = HfApi(token=token).list_repo_files(repo_id, revision=commit)
            if weights not in files:
                raise _no_weights(name, weights, files) from e
            raise SettingError(f'{name!r} has no {CONFIG}: it is not a model that timm can load.') from e
        if try_to_load_from_cache(repo_id, SETTINGS, revision=commit) is None and not offline():
            try:
                get(SETTINGS, commit)
            except EntryNotFoundError as e:
                if getattr(e, 'response', None) is None:
                    raise
        return folder

    try:
        return all_files()
    except SettingError:
        raise
    except Exception as e:  # of huggingface_hub, which has tried several times; of its HTTP client; of the system
        raise hub_error(e, repo_id, revision, token=token) from e


def _no_weights(name: str, weights: str, files: list[str]) -> SettingError:
    pickles = sorted(f for f in files if f.endswith(_PICKLES))
    if weights == WEIGHTS and pickles:
        return SettingError(
            f'{name!r} has its weights as {pickles[0]} and not as {WEIGHTS}. That is a pickle, which can run any code '
            f'when it is opened, and pickles of others are not read here. Its owner can add {WEIGHTS}: '
            f'timm.models.push_to_hf_hub(model, …, safe_serialization=True), or the Hub\'s converter, '
            f'https://huggingface.co/spaces/safetensors/convert')
    if weights == RAW_WEIGHTS:
        return SettingError(f'raw is True, but {name!r} has no {RAW_WEIGHTS}: its weights were not averaged.')
    others = sorted(f for f in files if f.endswith('.safetensors'))
    return SettingError(f'{name!r} has no {weights}' + (f'; it has {", ".join(others[:4])}.' if others else '.'))


def _settings(folder: Path, name: Union[str, Path]) -> MultiMixConfig:
    path = folder / SETTINGS
    if not path.is_file():
        raise SettingError(
            f"{str(name)!r} has no {SETTINGS}: it was not trained with the method. Say what to train it with, "
            f"from_pretrained({str(name)!r}, 'dense'), or load it with timm.create_model"
            + ('.' if str(name).startswith(('hf-hub:', 'hf_hub:')) else f"('local-dir:{folder}', pretrained=True).")
            + (f' (HF_HUB_OFFLINE is set: the cache may be without {SETTINGS} and the Hub not.)' if offline() else ''))
    try:
        found = load_yaml(path)
        if not isinstance(found, dict):
            raise SettingError('it holds no settings.')
        counts = found.get(COUNTS) or {}
        if not isinstance(counts, dict) or not all(isinstance(n, int) for n in counts.values()):
            raise SettingError(f'its {COUNTS} are no numbers.')
        config = MultiMixConfig.from_dict({name: value for name, value in found.items() if name != COUNTS})
        # The file says what the preset says, too, which nobody has chosen and another preset would say otherwise.
        return MultiMixConfig.from_dict({'mode': config.mode, 'preset': config.preset, **config.differences()})
    except SettingError as e:
        raise SettingError(f'{SETTINGS} of {str(name)!r} cannot be used: {e}\n  Give settings yourself: '
                           f"from_pretrained({str(name)!r}, 'dense').") from e


def _create(folder: Path, name: Union[str, Path], num_classes: Optional[int]) -> nn.Module:
    try:
        plain = timm.create_model(f'local-dir:{folder}', pretrained=True, num_classes=num_classes)
        if not hasattr(plain, '_model_args'):  # timm < 1.0.31 does not keep what it takes to build it again
            plain._model_args = {  # type: ignore[assignment]
                k: v for k, v in read_config(folder)[1].items() if k != 'num_classes'}
        return plain
    except (RuntimeError, SafetensorError, ValueError, TypeError, KeyError, AssertionError, OSError) as e:
        raise SettingError(f'{str(name)!r} cannot be loaded; its files do not fit each other, or are damaged: '
                           f'{type(e).__name__}: {reason(e, 4)}') from e
