"""The table of docs/from_timm.md: every flag of timm's train.py, and what it is here. `python tools/from_timm.py`"""
from __future__ import annotations

from pathlib import Path
from typing import Any

from timm_multimix.runs.flags import build_parser
from timm_multimix.runs.not_taken import NOT_TAKEN, OLD

# Flags of train.py of pytorch-image-models 3034f27 (1.0.31.dev0), and their defaults; and those that timm 1.0.31 has
# beyond it, by the tests, the notes and the factories in its source package, which holds no train.py.
TIMM: dict[str, Any] = {
    'config': '', 'data': None, 'data_dir': None, 'dataset': '', 'task': 'classification', 'train_split': 'train',
    'val_split': 'validation', 'train_num_samples': None, 'val_num_samples': None, 'dataset_download': False,
    'class_map': '', 'input_img_mode': None, 'input_key': None, 'target_key': None, 'target_format': None,
    'dataset_trust_remote_code': False,
    'model': 'resnet50', 'pretrained': False, 'pretrained_path': None, 'initial_checkpoint': '', 'resume': '',
    'no_resume_opt': False, 'num_classes': None, 'gp': None, 'img_size': None, 'in_chans': None, 'input_size': None,
    'crop_pct': None, 'mean': None, 'std': None, 'interpolation': '', 'batch_size': 128, 'validation_batch_size': None,
    'channels_last': False, 'fuser': '', 'grad_accum_steps': 1, 'grad_checkpointing': False, 'fast_norm': False,
    'model_kwargs': {}, 'pretrained_cfg_overlay': {}, 'head_init_scale': None, 'head_init_bias': None,
    'torchcompile_mode': None, 'torchscript': False, 'torchcompile': None,
    'device': 'cuda', 'amp': False, 'amp_dtype': 'float16', 'model_dtype': None, 'no_ddp_bb': False,
    'synchronize_step': False, 'local_rank': 0, 'device_modules': None,
    'opt': 'sgd', 'opt_eps': None, 'opt_betas': None, 'momentum': 0.9, 'weight_decay': 2e-5, 'clip_grad': None,
    'clip_mode': 'norm', 'layer_decay': None, 'layer_decay_min_scale': 0, 'layer_decay_no_opt_scale': None,
    'opt_kwargs': {},
    'sched': 'cosine', 'sched_on_updates': False, 'lr': None, 'lr_base': 0.1, 'lr_base_size': 256, 'lr_base_scale': '',
    'lr_noise': None, 'lr_noise_pct': 0.67, 'lr_noise_std': 1.0, 'lr_cycle_mul': 1.0, 'lr_cycle_decay': 0.5,
    'lr_cycle_limit': 1, 'lr_k_decay': 1.0, 'lr_decay_fn': None, 'lr_stable_timescale': None,
    'warmup_lr': 1e-5, 'min_lr': 0, 'epochs': 300, 'epoch_repeats': 0.0,
    'start_epoch': None, 'stop_epoch': None, 'decay_milestones': [90, 180, 270], 'decay_epochs': 90, 'warmup_epochs': 5,
    'warmup_prefix': False, 'cooldown_epochs': 0, 'patience_epochs': 10, 'decay_rate': 0.1,
    'no_aug': False, 'train_crop_mode': None, 'scale': [0.08, 1.0], 'ratio': [3 / 4, 4 / 3], 'hflip': 0.5, 'vflip': 0.0,
    'color_jitter': 0.4, 'color_jitter_prob': None, 'grayscale_prob': None, 'gaussian_blur_prob': None, 'aa': None,
    'aug_repeats': 0, 'aug_splits': 0, 'jsd_loss': False, 'loss': None, 'loss_pos_weight': None,
    'loss_class_weight': None, 'loss_weight_power': 1.0, 'class_stats': None, 'poly_epsilon': 2.0, 'poly_gamma': 0.0,
    'poly_alpha': None, 'asl_gamma_pos': 1.0, 'asl_gamma_neg': 4.0, 'asl_clip': 0.05, 'asl_reduction': 'batchmean',
    'twoway_tp': 4.0, 'twoway_tn': 1.0, 'db_neg_scale': 2.0, 'db_init_bias': 0.05, 'db_focal_gamma': 2.0,
    'bce_loss': False, 'bce_sum': False,
    'bce_target_thresh': None, 'bce_pos_weight': None, 'reprob': 0.0, 'remode': 'pixel', 'recount': 1, 'resplit': False,
    'mixup': 0.0, 'cutmix': 0.0, 'cutmix_minmax': None, 'mixup_prob': 1.0, 'mixup_switch_prob': 0.5,
    'mixup_mode': 'batch', 'mixup_off_epoch': 0, 'smoothing': None, 'train_interpolation': 'random', 'drop': 0.0,
    'drop_connect': None, 'drop_path': None, 'drop_block': None,
    'bn_momentum': None, 'bn_eps': None, 'sync_bn': False, 'dist_bn': 'reduce', 'split_bn': False,
    'model_ema': False, 'model_ema_force_cpu': False, 'model_ema_decay': 0.9998, 'model_ema_warmup': False,
    'seed': 42, 'worker_seeding': 'all', 'log_interval': 50, 'val_interval': 1, 'save_epochs': [],
    'recovery_interval': 0, 'checkpoint_hist': 10, 'workers': 4, 'persistent_workers': True, 'save_images': False,
    'pin_mem': False, 'no_prefetcher': False, 'output': '', 'experiment': '', 'eval_metric': None,
    'multilabel_threshold': 0.5, 'tta': 0, 'use_multi_epochs_loader': False, 'log_wandb': False, 'wandb_project': None,
    'wandb_tags': [], 'wandb_resume_id': '',
    'train_img_sizes': None, 'train_batch_sizes': None, 'train_size_probs': None, 'train_size_schedule': 'constant',
    'train_size_schedule_spread': 0.65, 'train_size_random_mix': 0.1, 'train_batches_per_epoch': None,
    'variable_batch_loss_scale': 'none',
    'naflex_loader': False, 'naflex_train_seq_lens': [128, 256, 576, 784, 1024], 'naflex_max_seq_len': 576,
    'naflex_patch_sizes': None, 'naflex_patch_size_probs': None, 'naflex_loss_scale': 'linear',
    'naflex_patchify_channels_first': False,
    'kd_model_name': None, 'kd_distill_type': 'logit', 'kd_loss_type': 'kl', 'distill_loss_weight': None,
    'task_loss_weight': None, 'kd_temperature': 4.0, 'kd_student_feature_dim': None, 'kd_teacher_feature_dim': None,
    'kd_token_distill_type': 'soft',
}

DIFFERENT: dict[str, str] = {
    'config': 'unknown keys, impossible values and keys given twice are errors, but for keys that a newer timm wrote '
              'into its `args.yaml`; keys may have dashes',
    'dataset': 'without `--data-dir` and `--dataset` it is `sklearn/digits`; there is no default folder',
    'val_split': 'there is always validation: an empty name is an error',
    'pretrained_path': 'implies `--pretrained` (timm ignores it without)',
    'resume': 'also a run folder or `auto`, and the run goes on in that folder, with its `args.yaml`; `--output` and '
              '`--experiment` are then errors, but for `auto`, which looks there',
    'num_classes': "default: as many as the data set has (timm: the model's)",
    'img_size': 'also builds the model for this size (timm needs `--model-kwargs img_size=N`, which is the same here)',
    'input_size': 'also builds the model for this size',
    'initial_checkpoint': 'also the folder of a run, `local-dir:` and `hf-hub:`; of another number of classes all but '
                          'the classifier is taken (timm: an error); prefixes of DataParallel and Lightning are '
                          'stripped; other weights that do not fit are an error that says so',
    'pretrained_cfg_overlay': '`file` is an error: `--pretrained-path`',
    'stop_epoch': "is not kept in `args.yaml`, so that `--resume` goes on to the end",
    'loss': '`bce` is the same as `--bce-loss`; in place of the others, which timm alone has, it is cross-entropy, and '
            'a warning says so',
    'loss_pos_weight': 'one number, the same as `--bce-pos-weight`; others have no effect, and a warning says so',
    'device': 'default `auto`: CUDA, else MPS, else CPU (timm: `cuda`)',
    'amp_dtype': 'default on the CPU `bfloat16`',
    'opt': 'optimizers of second order are refused',
    'decay_epochs': 'default 90, for `wsd` and `rsqrt` 0.2 (the last fifth)',
    'aug_repeats': 'in one process an error that says so (timm: an assertion)',
    'cutmix': 'default 0, with `--multimix` 1 (0 with every `--multimix-preset` but `default`)',
    'mixup': 'default 0, with `--multimix` 1 (`--multimix-preset paper` 2, the others 0); happens on the device, so '
             '`--mixup-off-epoch` always works',
    'smoothing': 'default 0.1, with `--multimix` 0, and the screen says so; is applied once, before mixing',
    'sync_bn': 'of GPUs alone, as torch has it; elsewhere an error',
    'recovery_interval': 'the run goes on within the epoch, to the same end as if it had not been stopped',
    'bn_momentum': 'of every batch norm (timm: of models that take it as an argument)',
    'head_init_scale': 'a classifier that comes with the weights is left as it is',
    'head_init_bias': 'a classifier that comes with the weights is left as it is',
    'workers': 'default 4, or as many as there are cores (timm: 4)',
    'worker_seeding': 'of streams alone: every other image is seeded by its place, in whatever process',
    'val_interval': 'epochs without validation still get a row in `summary.csv`',
    'output': 'a folder that holds a run is never written over',
    'experiment': 'a folder that holds a run is never written over',
    'data_dir': 'folders may also hold WebP, BMP, GIF and TIFF files, which timm leaves out',
    'eval_metric': 'default `top1`; `top5`, `loss`, and `balanced`, the mean over classes of top-1',
    'log_wandb': 'the same as `--log wandb`; an error where wandb is not installed (timm: a warning)',
    'wandb_project': "also trackio's",
}


def status(name: str) -> tuple[str, str]:
    """'same', 'different' or 'not taken', and why."""
    if name in NOT_TAKEN:
        return 'not taken', NOT_TAKEN[name].why
    return ('different', DIFFERENT[name]) if name in DIFFERENT else ('same', '')


def flag(name: str) -> str:
    if name in ('data', 'local_rank'):
        return {'data': 'DIR', 'local_rank': '--local_rank'}[name]
    return f'--{name.replace("_", "-")}'


def table() -> str:
    """Markdown, in the order of timm's help."""
    rows = [f'| `{flag(name)}` | {status(name)[0]} | {status(name)[1]} |' for name in TIMM]
    return '\n'.join(['| timm | here | |', '|---|---|---|', *rows])


def lists() -> str:
    """Flags that are ours alone, and keys of older versions of timm."""
    ours = [a.dest for a in build_parser()._actions if a.dest not in TIMM and a.dest not in NOT_TAKEN
            and a.dest != 'help' and not a.dest.startswith('multimix')]
    return (f'Not in timm: `--multimix` and `--multimix-…`, {", ".join(f"`{flag(n)}`" for n in ours)}.\n'
            f'Keys of older versions, taken note of in YAML files in the same way: '
            f'{", ".join(f"`{name}`" for name in OLD)}.')


if __name__ == '__main__':
    page = Path(__file__).resolve().parents[1] / 'docs' / 'from_timm.md'
    begin, rest = page.read_text().split('<!-- table -->\n')[:2], page.read_text().split('<!-- end -->\n')[1]
    page.write_text(f'{begin[0]}<!-- table -->\n{table()}\n\n{lists()}\n<!-- end -->\n{rest}')
