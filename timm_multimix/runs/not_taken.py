"""Settings of timm's train.py that are not taken here: known, so that a timm command or YAML runs, and named when set.

`docs/from_timm.md` lists every flag of timm's; `python tools/from_timm.py` writes its table.
"""
from __future__ import annotations

import argparse
import warnings
from collections.abc import Collection
from typing import Any, NamedTuple


class NotTaken(NamedTuple):
    """Why, timm's default, and whether it takes several values."""
    why: str
    default: Any = False
    many: bool = False


_DISTILLATION = 'distillation is another task of timm; --multimix-teacher lets a teacher have a share of the targets'
_NAFLEX = "NaFlex feeds patches of images of any shape; there is no feature map of one shape to mix"
_SIZES = 'sizes and batches that change from step to step; mixtures are of one batch size'
_SPLITS = 'compares augmented copies of an image with each other, which mixing would blend'
_WEIGHTS = 'weighs classes in binary cross-entropy; in cross-entropy --class-weight does, and auto counts the images'
_OTHER_LOSS = 'belongs to a --loss that is not taken'
_MULTILABEL = 'several labels to an image: the mixed loss is of one label, or of targets that sum to one'

NOT_TAKEN: dict[str, NotTaken] = {
    'task': NotTaken(_MULTILABEL, 'classification'),
    'target_format': NotTaken(_MULTILABEL, None),
    'multilabel_threshold': NotTaken(_MULTILABEL, 0.5),
    'fuser': NotTaken('a choice for TorchScript, which PyTorch has given up for torch.compile', ''),
    'torchscript': NotTaken('PyTorch has given it up for torch.compile: --torchcompile'),
    'synchronize_step': NotTaken('waits for the GPU after every step and changes no result'),
    'local_rank': NotTaken('torchrun says it in the environment', 0),
    'aug_splits': NotTaken(_SPLITS, 0),
    'jsd_loss': NotTaken(_SPLITS),
    'split_bn': NotTaken('is for --aug-splits'),
    'drop_connect': NotTaken('timm does not read it any more: --drop-path', None),
    'tta': NotTaken('averages neighbours in the batch, which no loader of train.py makes copies of one image', 0),
    'use_multi_epochs_loader': NotTaken('--persistent-workers keeps the workers between epochs, too'),
    'train_img_sizes': NotTaken(_SIZES, None, True),
    'train_batch_sizes': NotTaken(_SIZES, None, True),
    'train_size_probs': NotTaken(_SIZES, None, True),
    'train_size_schedule': NotTaken(_SIZES, 'constant'),
    'train_size_schedule_spread': NotTaken(_SIZES, 0.65),
    'train_size_random_mix': NotTaken(_SIZES, 0.1),
    'train_batches_per_epoch': NotTaken(_SIZES, None),
    'variable_batch_loss_scale': NotTaken(_SIZES, 'none'),
    'naflex_loader': NotTaken(_NAFLEX),
    'naflex_train_seq_lens': NotTaken(_NAFLEX, [128, 256, 576, 784, 1024], True),
    'naflex_max_seq_len': NotTaken(_NAFLEX, 576),
    'naflex_patch_sizes': NotTaken(_NAFLEX, None, True),
    'naflex_patch_size_probs': NotTaken(_NAFLEX, None, True),
    'naflex_loss_scale': NotTaken(_NAFLEX, 'linear'),
    'naflex_patchify_channels_first': NotTaken(_NAFLEX),
    'kd_model_name': NotTaken(_DISTILLATION, None),
    'kd_distill_type': NotTaken(_DISTILLATION, 'logit'),
    'kd_loss_type': NotTaken(_DISTILLATION, 'kl'),
    'distill_loss_weight': NotTaken(_DISTILLATION, None),
    'task_loss_weight': NotTaken(_DISTILLATION, None),
    'kd_temperature': NotTaken(_DISTILLATION, 4.0),
    'kd_student_feature_dim': NotTaken(_DISTILLATION, None),
    'kd_teacher_feature_dim': NotTaken(_DISTILLATION, None),
    'kd_token_distill_type': NotTaken(_DISTILLATION, 'soft'),
    'loss_class_weight': NotTaken(_WEIGHTS, None),
    'loss_weight_power': NotTaken(_WEIGHTS, 1.0),
    'class_stats': NotTaken(_WEIGHTS, None),
    'poly_epsilon': NotTaken(_OTHER_LOSS, 2.0),
    'poly_gamma': NotTaken(_OTHER_LOSS, 0.0),
    'poly_alpha': NotTaken(_OTHER_LOSS, None),
    'asl_gamma_pos': NotTaken(_OTHER_LOSS, 1.0),
    'asl_gamma_neg': NotTaken(_OTHER_LOSS, 4.0),
    'asl_clip': NotTaken(_OTHER_LOSS, 0.05),
    'asl_reduction': NotTaken(_OTHER_LOSS, 'batchmean'),
    'twoway_tp': NotTaken(_OTHER_LOSS, 4.0),
    'twoway_tn': NotTaken(_OTHER_LOSS, 1.0),
    'db_neg_scale': NotTaken(_OTHER_LOSS, 2.0),
    'db_init_bias': NotTaken(_OTHER_LOSS, 0.05),
    'db_focal_gamma': NotTaken(_OTHER_LOSS, 2.0),
    # of older versions, in the YAML files that people keep
    'amp_impl': NotTaken('of older timm; there is one --amp', 'native'),
    'apex_amp': NotTaken('of older timm; there is one --amp'),
    'native_amp': NotTaken('of older timm; it is --amp now'),
    'aot_autograd': NotTaken('of older timm; --torchcompile came after it'),
    'bn_tf': NotTaken('of older timm; --bn-momentum 0.01 --bn-eps 1e-3 is what it stood for'),
    'jsd': NotTaken('of older timm; ' + _SPLITS),
}
# Of all args.yaml of timm's, and of no file that people write themselves.
OF_ARGS_YAML = ('aug_splits', 'split_bn', 'tta', 'use_multi_epochs_loader')
OLD = ('amp_impl', 'apex_amp', 'native_amp', 'aot_autograd', 'bn_tf', 'jsd')


def add_not_taken(parser: argparse.ArgumentParser) -> None:
    """Let the parser read them, without showing them."""
    for name, (_, default, many) in NOT_TAKEN.items():
        flag = f'--{name}' if name == 'local_rank' else f'--{name.replace("_", "-")}'
        kind: dict[str, Any] = {'action': 'store_true'} if default is False else {'nargs': '+'} if many else {}
        parser.add_argument(flag, default=default, help=argparse.SUPPRESS, **kind)


def drop_not_taken(args: argparse.Namespace) -> None:
    """Take them out of the namespace again, and warn of those that were set."""
    for name, (why, default, _) in NOT_TAKEN.items():
        value = vars(args).pop(name)
        idle = value in (None, '', [], {}) or value == default or str(value) == str(default)
        if name != 'local_rank' and not idle:
            warnings.warn(f'{name} is {value!r} in timm, but it is not taken here and has no effect: {why}.',
                          stacklevel=3)


def is_args_yaml(settings: Collection[str]) -> bool:
    """Whether a file is one that timm's train.py wrote, by its keys."""
    return set(OF_ARGS_YAML) <= set(settings)


def note_newer(settings: dict[str, Any], path: str) -> None:
    """Warn of keys that an args.yaml of timm's has and nobody knows here."""
    if settings:
        values = ', '.join(f'{name}: {value!r}' for name, value in settings.items())
        warnings.warn(f'{path} was written by a timm that is newer than what is known here. These settings of it have '
                      f'no effect: {values}.', stacklevel=3)
