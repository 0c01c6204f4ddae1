"""The model card: what a stranger wants to know, from what lies beside the weights."""
from __future__ import annotations

import argparse
import math
import shlex
from pathlib import Path
from typing import Any, Optional

import timm
from huggingface_hub import EvalResult, ModelCardData
from safetensors import safe_open
from timm.models import is_model, model_entrypoint

from ..config import METHODS, setting_text
from ..files import load_json, load_yaml
from ..policy import EMBEDDINGS, told
from ..runs.flags import OF_THE_MACHINE, build_parser
from ..runs.recipes import RECIPES, published_recipe
from ..runs.summary import read_summary
from ..runs.yaml_file import read_yaml
from .save import CONFIG, COUNTS, MODE, RAW_WEIGHTS, SETTINGS, WEIGHTS

TAG = 'timm-multimix'  # what list_checkpoints searches for
PAPER = '2311.05538'
NOTES = 'notes.md'  # what else is to be said, in Markdown; the card takes it in
# A card that was written by hand, which is one without this line, is never replaced.
MARK = '<!-- Written by timm-multimix, and anew at every push. Without this line it stays as you edit it. -->'
_CITATION = '''```bibtex
@inproceedings{venkataramanan2023multimix,
  title     = {Embedding Space Interpolation Beyond Mini-Batch, Beyond Pairs and Beyond Examples},
  author    = {Venkataramanan, Shashanka and Kijak, Ewa and Amsaleg, Laurent and Avrithis, Yannis},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023}
}
@misc{rw2019timm,
  author = {Ross Wightman},
  title  = {PyTorch Image Models},
  year   = {2019},
  doi    = {10.5281/zenodo.4414861},
  howpublished = {https://github.com/huggingface/pytorch-image-models}
}
```
'''


def model_card(folder: Path, name: str, license: Optional[str] = None) -> str:
    """README.md of a folder that holds `config.json`, `model.safetensors` and whatever a run left beside them.

    Args:
        folder: as it will be published.
        name: as timm loads it: hf-hub:user/name, local-dir:FOLDER.
        license: of the weights, as the Hub names licenses. None says nothing about it.
    """
    config = load_json(folder / CONFIG)
    args, settings = _yaml(folder / 'args.yaml'), _yaml(folder / SETTINGS)
    counts = settings.pop(COUNTS, None) or {}
    every = read_summary(folder / 'summary.csv')
    rows = [r for r in every if r.get('eval_top1') not in (None, '')]
    if rows[-1:] != every[-1:]:  # the weights are of the last epoch: no other's results are theirs
        rows = []
    if config['num_classes'] <= 5:  # then the true class is always among the first five
        rows = [{k: v for k, v in r.items() if k != 'eval_top5'} for r in rows]
    title = name.partition(':')[2].rstrip('/').rpartition('/')[2].partition('@')[0]
    averaged = (folder / RAW_WEIGHTS).exists()
    front = _front_matter(title, config, args, settings, counts, rows[-1] if rows else {}, license)
    parts = [_about(config, settings, counts, folder), _usage(name, config, settings, averaged)]
    if rows:
        parts.append(_results(rows, args, averaged, (folder / 'curves.png').exists()))
    if (folder / NOTES).exists():
        parts.append(f'## Notes\n\n{(folder / NOTES).read_text(encoding="utf-8").strip()}\n')
    parts += [_training(args, settings), f'## Citation\n\n{_CITATION}']
    return f'---\n{front.to_yaml()}\n---\n{MARK}\n\n# {title}\n\n' + '\n'.join(filter(None, parts))


def _front_matter(title: str, config: dict[str, Any], args: dict[str, Any], settings: dict[str, Any],
                  counts: dict[str, int], last: dict[str, Any], license: Optional[str]) -> ModelCardData:
    kind, data_set = _data_set(args)
    tags = ['image-classification', 'timm']
    if settings:
        tags += [TAG, f'arxiv:{PAPER}']
        if _mixed_embeddings(counts):
            tags += ['multimix', *(['dense-multimix'] if settings.get('mode') == 'dense' else [])]
    results = [
        EvalResult(task_type='image-classification', task_name='Image Classification', dataset_type=kind,
                   dataset_name=data_set, dataset_split=args.get('val_split') or 'validation', metric_type='accuracy',
                   metric_name=label, metric_value=round(float(last[key]) / 100, 4))
        for key, label in (('eval_top1', 'Accuracy (top-1)'), ('eval_top5', 'Accuracy (top-5)'))
        if kind and last.get(key) not in (None, '')]
    return ModelCardData(
        library_name='timm', pipeline_tag='image-classification', tags=tags, license=license,
        base_model=_base_model(config, args), metrics=['accuracy'] if results else None,
        datasets=[data_set if kind == 'other' else kind] if kind and kind != 'imagefolder' else None,
        model_name=title if results else None, eval_results=results or None)


def _mixed_embeddings(counts: dict[str, int]) -> bool:
    """False where the method was switched on and did nothing; older versions did not count and are believed."""
    return not counts.get('steps') or bool(counts.get(EMBEDDINGS))


def _about(config: dict[str, Any], settings: dict[str, Any], counts: dict[str, int], folder: Path) -> str:
    size = config['pretrained_cfg'].get('input_size', (3, 224, 224))
    method = METHODS.get(settings.get('mode', ''))
    with safe_open(folder / WEIGHTS, 'pt') as f:  # type: ignore[no-untyped-call]
        slices = [f.get_slice(k) for k in f.keys()]  # noqa: SIM118
        shapes = [part.get_shape() for part in slices]
        half = any(part.get_dtype() == 'F16' for part in slices)
    count = sum(math.prod(s) for s in shapes)
    paper = f'{method} ([arXiv {PAPER}](https://arxiv.org/abs/{PAPER}))'
    trained = '.'
    if method and _mixed_embeddings(counts):
        trained = f', trained with {paper}.'
    elif method:
        trained = f'. Its training was set to {paper}, but no step mixed embeddings.'
    done = f'\n{told(counts)}\n' if counts.get('steps') else ''
    names = config.get('label_names') or config['pretrained_cfg'].get('label_names')
    named = list(names.values()) if isinstance(names, dict) else list(names or [])
    classes = f': {", ".join(map(str, named))}' if 0 < len(named) <= 20 else ''
    mode = '' if config.get(MODE, 'RGB') == 'RGB' else f'{config[MODE]} '
    return (f'`{config["architecture"]}` for {mode}images of {size[1]}×{size[2]} pixels and {config["num_classes"]} '
            f'classes{classes}. It has {count / 1e6:.1f} M weights{trained}'
            + ' They are stored in half precision (float16).' * half + f'\n{done}')


def _usage(name: str, config: dict[str, Any], settings: dict[str, Any], averaged: bool) -> str:
    ours = not is_timms_own(config['architecture'])
    text = ('## Use\n\n' + (
        f'`{config["architecture"]}` is not among timm\'s own models: `pip install timm-multimix` brings it.'
        if ours else 'A plain [timm](https://github.com/huggingface/pytorch-image-models) model; nothing else is '
                     'needed.') + '\n\n```python\nimport timm, torch\n' + ('import timm_multimix\n' if ours else '')
        + 'from PIL import Image\n\n'
        f"model = timm.create_model('{name}', pretrained=True).eval()\n"
        'transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)\n'
        f"image = transform(Image.open('image.jpg').convert('{config.get(MODE, 'RGB')}')).unsqueeze(0)\n"
        'with torch.no_grad():\n    probabilities = model(image).softmax(-1)[0].sort(descending=True)\n'
        "names = model.pretrained_cfg.get('label_names') or range(model.num_classes)\n"
        'for p, i in zip(probabilities.values[:5].tolist(), probabilities.indices[:5].tolist()):\n'
        "    print(f'{names[i]}: {p:.1%}')\n"
        '```\n')
    if averaged:
        text += f'\n`{WEIGHTS}` holds averaged weights (EMA). The last, not averaged ones are in `{RAW_WEIGHTS}`:\n'
        repo_id, _, revision = name.partition(':')[2].partition('@')
        where = f"hf_hub_download('{repo_id}', '{RAW_WEIGHTS}'" + f", revision='{revision}'" * bool(revision) + ')'
        path = where if name.startswith('hf-hub:') else f"'{repo_id}/{RAW_WEIGHTS}'"
        text += ('\n```python\n' + 'from huggingface_hub import hf_hub_download\n\n' * (path == where)
                 + f"model = timm.create_model('{name}', checkpoint_path={path})\n```\n")
    if settings:
        text += (f'\nTo go on training with its settings ([`{SETTINGS}`]({SETTINGS})):\n\n```python\n'
                 f"import timm_multimix\n\nmodel = timm_multimix.from_pretrained('{name}')\n"
                 'loss = model(images, target).loss\n```\n')
    return text


def _results(rows: list[dict[str, Any]], args: dict[str, Any], averaged: bool, curves: bool) -> str:
    last, best = rows[-1], max(rows, key=lambda r: float(r['eval_top1']))
    done, planned = int(last['epoch']) + 1, int(args.get('epochs') or 0)
    planned += int(args.get('cooldown_epochs') or 0) + (int(args.get('warmup_epochs') or 0)
                                                        if args.get('warmup_prefix') else 0)
    _, data_set = _data_set(args)
    columns = [(label, f'{float(last[key]):.{digits}f}') for label, key, digits in (
        ('top-1 %', 'eval_top1', 2), ('top-5 %', 'eval_top5', 2), ('cross-entropy', 'eval_loss', 3),
        ('top-1 % without averaging', 'eval_raw_top1', 2)) if last.get(key) not in (None, '')]
    text = (f'## Results\n\nOn the split `{args.get("val_split") or "validation"}`'
            + (f' of {data_set}' if data_set else '') + f', after epoch {done}'
            + f' of {planned}' * bool(planned) + ': training has not ended' * (done < planned)
            + (', with averaged weights' if averaged else '') + '. One run, not a mean over seeds.\n\n'
            + ''.join(f'| {" | ".join(cells)} |\n' for cells in (
                [label for label, _ in columns], ['---'] * len(columns), [value for _, value in columns])))
    if float(best['eval_top1']) > float(last['eval_top1']):
        text += (f'\nThe best epoch was {int(best["epoch"]) + 1}, with {float(best["eval_top1"]):.2f} % top-1; these '
                 f'are the weights of epoch {done}, which was not chosen by its result.\n')
    return text + ('\n![Loss, accuracy and mixing over the epochs](curves.png)\n' if curves else '')


def _training(args: dict[str, Any], settings: dict[str, Any]) -> str:
    if not args and not settings:
        return ''
    text = '## Training\n\n'
    if args:
        text += (f'With timm-multimix:\n\n```sh\n{train_command(args)}\n```\n\nor, with every setting, '
                 f'`timm-multimix train -c args.yaml` ([args.yaml](args.yaml)). Loss, accuracy and mixing of every '
                 f'epoch are in [summary.csv](summary.csv).\n')
    if settings:
        text += ('\n| setting | value |\n|---|---|\n'
                 + ''.join(f'| {k} | {setting_text(k, v)} |\n' for k, v in settings.items()))
    return text


def is_timms_own(architecture: str) -> bool:
    """Whether timm alone knows the architecture."""
    name = architecture.partition('.')[0]
    return not is_model(name) or model_entrypoint(name).__module__.startswith(f'{timm.__name__}.')


def train_command(args: dict[str, Any]) -> str:
    """The command line that differs from train.py's defaults, or from our recipe's, by the settings of args.yaml."""
    parser = build_parser()
    words = ['timm-multimix', 'train']
    recipe = published_recipe(args.get('recipe') or '')
    if recipe.is_file() and recipe.resolve().parent == RECIPES:  # strangers have it too, under its name
        parser.set_defaults(**read_yaml(recipe, parser))
        words += ['-c', recipe.stem]
    for action in parser._actions:
        name = action.dest
        value = args.get(name)
        same = value == parser.get_default(name) and name not in ('model', 'multimix')  # these two say it all
        if name in (*OF_THE_MACHINE, 'help', 'recipe', 'num_classes') or value is None or same:
            continue
        words += _words(action, value)
    lines = [' '.join(words[:2])]
    for word in words[2:]:
        if len(lines[-1]) + len(word) > 100 and word.startswith('-'):
            lines.append('   ')
        lines[-1] += f' {word}'
    return ' \\\n'.join(lines)


def _words(action: argparse.Action, value: Any) -> list[str]:
    flag = max(action.option_strings, key=lambda s: (s.startswith('--'), -len(s)))
    if isinstance(action, argparse.BooleanOptionalAction):
        return [flag if value else flag.replace('--', '--no-', 1)]
    if action.nargs == 0:
        return [flag] if value else []
    if isinstance(value, dict):
        return [flag, *(shlex.quote(f'{k}={v}') for k, v in value.items())]
    return [flag, *(shlex.quote(str(v)) for v in (value if isinstance(value, (list, tuple)) else [value]))]


def _data_set(args: dict[str, Any]) -> tuple[str, str]:
    """What the Hub's cards call type and name of a data set; both empty where it is not known."""
    given = str(args.get('dataset') or '')
    if given.lower() == 'sklearn/digits':
        return 'sklearn-digits', "scikit-learn's handwritten digits"
    if '/' in given:
        return 'other', given.partition('/')[2]
    if args.get('data_dir'):
        return 'imagefolder', Path(str(args['data_dir'])).name
    return '', ''


def _base_model(config: dict[str, Any], args: dict[str, Any]) -> Optional[str]:
    for name in (args.get('initial_checkpoint'), args.get('model') if args.get('pretrained') else ''):
        if name and str(name).startswith(('hf-hub:', 'hf_hub:')):
            return str(name).partition(':')[2].partition('@')[0]
    tag = config['pretrained_cfg'].get('tag')
    return f'timm/{config["architecture"]}.{tag}' if args.get('pretrained') and tag else None


def _yaml(path: Path) -> dict[str, Any]:
    found = load_yaml(path) if path.exists() else None
    return found if isinstance(found, dict) else {}
