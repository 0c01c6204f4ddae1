"""The flags of train.py: timm's names, meanings and defaults, and the method's own."""
from __future__ import annotations

import argparse
import os
from typing import Any, Optional

from ..config import MODES, SETTINGS, MultiMixConfig, flag, setting_text
from ..data import DIGITS
from ..data.factory import CHANNELS
from ..data.split import HELD_OUT
from ..setting import SHARE, Number, number, whole
from .loss_names import LOSSES
from .not_taken import NOT_TAKEN, add_not_taken
from .parser import KeyValues, Parser

# Settings of the method whose flags are no other program's.
MULTIMIX_FLAGS = tuple(name for name in SETTINGS if flag(name).startswith('--multimix-'))
# What says something about the machine and the screen, and nothing about the model.
OF_THE_MACHINE = ('resume', 'config', 'output', 'experiment', 'workers', 'persistent_workers', 'no_prefetcher',
                  'device', 'device_modules', 'pin_mem', 'log_interval', 'checkpoint_hist', 'recovery_interval',
                  'save_images', 'log', 'log_wandb', 'wandb_project', 'wandb_tags', 'wandb_resume_id', 'push_to_hub',
                  'push_every', 'push_private')
# What the same run may be gone on with in another way: `--resume auto` does not look at these.
FREE_ON_RESUME = (*OF_THE_MACHINE, 'epochs', 'nonfinite_limit', 'bad_images', 'dataset_download', 'start_epoch',
                  'stop_epoch', 'save_epochs',
                  *NOT_TAKEN)
# Flags that are paths of this machine; and those that may name something else.
PERHAPS_PATHS = ('class_map', 'class_weight', 'multimix_teacher')
PATHS = ('data_dir', 'output', 'initial_checkpoint', 'pretrained_path', *PERHAPS_PATHS)
INTERPOLATIONS = ('bilinear', 'bicubic', 'nearest', 'lanczos', 'box', 'hamming')
CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
SIDE = whole(least=1, most=16384)  # of an image in pixels
CROP_PCT = number(above=0, most=2)
SEED = whole(least=0, most=2**32 - 1)


def add_settings(group: argparse._ArgumentGroup) -> None:
    """A flag for each of `MULTIMIX_FLAGS`. What is not given is None, and the preset's."""
    usual = MultiMixConfig('dense').to_dict()
    for name in MULTIMIX_FLAGS:
        about = SETTINGS[name]
        kind: dict[str, Any] = {'metavar': about.metavar} if about.metavar else {}
        if about.values is bool:
            kind['action'] = argparse.BooleanOptionalAction
        elif isinstance(about.values, tuple):
            kind['choices'] = about.values
        elif isinstance(about.values, Number):
            kind['type'] = about.values
        if about.many:
            kind['nargs'] = '+'
        default = f' (default preset: {setting_text(name, usual[name])})' if name in usual and name != 'preset' else ''
        if name not in usual and about.usual is not None:  # it needs another setting, which is off
            default = f' (default: {setting_text(name, about.usual)})'
        group.add_argument(flag(name), default=None, help=about.text + default, **kind)


def build_parser() -> argparse.ArgumentParser:
    """All flags. Help texts say where a default differs from timm's."""
    parser = Parser('Train a timm model with MultiMix or Dense MultiMix.')
    add, on_off = parser.add_argument, argparse.BooleanOptionalAction
    values: dict[str, Any] = {name: about.values for name, about in SETTINGS.items()}  # of timm's flags
    add('-c', '--config', metavar='FILE',
        help='YAML file of defaults, whose keys are flag names with underscores; or the name of a recipe of hparams/')
    add('data', nargs='?', metavar='DIR', help='the same as --data-dir')

    group = parser.add_argument_group('MultiMix')
    g = group.add_argument
    g('--multimix', choices=('none', *MODES), default='none', help=f"{SETTINGS['mode'].help}, 'none' nothing")
    add_settings(group)
    g('--multimix-task', metavar='MODULE:CLASS', help='a subclass of timm_multimix.MultiMixTask to train with')

    g = parser.add_argument_group('Dataset').add_argument
    g('--data-dir', metavar='DIR',
      help='folder of images: one sub-folder per split, in it one per class; or the class folders themselves')
    g('--dataset', default=None, metavar='NAME', help=f'as in timm: torch/cifar10, hfds/…; without --data-dir {DIGITS}')
    g('--train-split', default='train', metavar='NAME', help='split of the data set that is trained on')
    g('--val-split', default='validation', metavar='NAME', help='split of the data set that is validated on')
    g('--val-fraction', type=number(above=0, below=1),
      default=HELD_OUT, metavar='P',
      help='share of each class that is held out to validate on, where --data-dir has class folders and no splits')
    g('--dataset-download', action=on_off, default=False, help='let torch/, hfids/ and tfds/ data sets download')
    g('--train-num-samples', type=whole(least=1), default=None, metavar='N',
      help='images of the training split, of a stream that does not say')
    g('--val-num-samples', type=whole(least=1), default=None, metavar='N',
      help='images of the validation split, of a stream that does not say')
    g('--input-key', default=None, metavar='NAME', help='hfds/, hfids/, tfds/, wds/: the column of the images')
    g('--target-key', default=None, metavar='NAME', help='hfds/, hfids/, tfds/, wds/: the column of the classes')
    g('--dataset-trust-remote-code', action=on_off, default=False, help='hfds/, hfids/: run code of the data set')
    g('--input-img-mode', choices=CHANNELS, default=None, metavar='MODE',
      help="images are converted to this mode of Pillow's (default: RGB, with --in-chans 1 L)")
    g('--class-map', default='', metavar='FILE', help='class to index mapping')
    g('--bad-images', choices=('error', 'skip', 'ignore'), default='error',
      help="what an unreadable image of a folder does: 'error' stops before training, 'skip' leaves it out; 'ignore' "
           'does not look, and timm then takes its neighbour')

    g = parser.add_argument_group('Model').add_argument
    g('--model', default='resnet50', metavar='MODEL', help='a timm model name, hf-hub:… or local-dir:…')
    g('--pretrained', action=on_off, default=False, help='start from its published weights')
    g('--pretrained-path', default=None, metavar='FILE',
      help='start from the weights in this file, not the published ones; what does not fit the task, such as the '
           'classifier, is made anew')
    g('--pretrained-cfg-overlay', nargs='*', default={}, action=KeyValues, metavar='K=V',
      help="replace these of the model's pretrained_cfg, such as mean, std, hf_hub_id")
    g('--initial-checkpoint', default='', metavar='PATH',
      help='start from these weights: a file, the folder of a run, hf-hub:user/name or local-dir:…; all but a file say '
           'the model too. The classifier is made anew where the number of classes is another')
    g('--resume', default='', metavar='PATH',
      help="resume the run of this folder or checkpoint, there and with its args.yaml; 'auto': the newest run in "
           '--output (or --experiment there) that these flags do not contradict, else a new one')
    g('--no-resume-opt', action='store_true', help='do not take the optimizer over from --resume')
    g('--num-classes', type=whole(least=1), default=None, metavar='N',
      help='number of classes (default: as many as the data set has)')
    g('--gp', default=None, metavar='POOL', help='global pooling of the model (default: its own)')
    g('--img-size', type=SIDE, default=None, metavar='N',
      help="side of an image in pixels (default: the model's; 32 for the embedded data set)")
    g('--in-chans', type=whole(least=1), default=None, metavar='N',
      help="channels of an image (default: the model's, most often 3)")
    g('--input-size', type=whole(least=1), nargs=3, default=None, metavar='N',
      help='channels, height and width of an image, in pixels')
    g('--crop-pct', type=CROP_PCT, default=None, metavar='N',
      help='share of the validation image that is kept, after it is resized')
    g('--mean', type=number(), nargs='+', default=None, metavar='X',
      help="mean of each channel that images are normalised with, of pixels from 0 to 1 (default: the model's)")
    g('--std', type=number(above=0), nargs='+', default=None, metavar='X',
      help="standard deviation of each channel, as --mean (default: the model's)")
    g('--interpolation', choices=('', *INTERPOLATIONS), default='', help='how validation images are resized')
    g('-b', '--batch-size', type=whole(least=1), default=128, metavar='N',
      help='training images in a batch, on each rank')
    g('-vb', '--validation-batch-size', type=whole(least=1), default=None, metavar='N',
      help='images in a batch of the validation (default: as --batch-size)')
    g('--channels-last', action=on_off, default=False,
      help='lay images out in memory with the channels last, which many GPUs compute faster')
    g('--grad-accum-steps', type=whole(least=1), default=1, metavar='N', help='batches per update')
    g('--grad-checkpointing', action=on_off, default=False,
      help='compute activations a second time in the backward pass: less memory, more time')
    g('--fast-norm', action=on_off, default=False, help='norm layers in low precision under --amp')
    g('--head-init-scale', type=float, default=None, metavar='X',
      help='number that the initial classifier is multiplied by')
    g('--head-init-bias', type=float, default=None, metavar='X', help="the classifier's initial bias")
    g('--torchcompile', nargs='?', const='inductor', default=None, metavar='BACKEND', help='torch.compile the model')
    g('--torchcompile-mode', default=None, metavar='MODE',
      help='mode of torch.compile: default, reduce-overhead, max-autotune, …')
    g('--model-kwargs', nargs='*', default={}, action=KeyValues, metavar='K=V',
      help='more arguments of timm.create_model')
    g('--drop', type=number(least=0, below=1), default=0.0, metavar='P',
      help='probability of dropout, before the classifier in most models')
    g('--drop-path', type=number(least=0, below=1), default=None, metavar='P',
      help='probability of dropping a residual branch (stochastic depth)')
    g('--drop-block', type=number(least=0, below=1), default=None, metavar='P',
      help='probability of DropBlock, of the models that have it')

    g = parser.add_argument_group('Device').add_argument
    g('--device', default='auto',
      help='what computes: auto (CUDA, else MPS, else CPU), cuda, cuda:1, mps, cpu (timm: cuda)')
    g('--amp', action=on_off, default=False, help='mixed precision')
    g('--amp-dtype', choices=('float16', 'bfloat16'), default=None,
      help='type of mixed precision (default: float16, on the CPU bfloat16)')
    g('--model-dtype', choices=('float32', 'bfloat16', 'float16'), default=None,
      help='type of the weights (default: float32)')
    g('--device-modules', nargs='+', default=None, metavar='NAME', help='Python modules that bring the device')

    g = parser.add_argument_group('Optimizer').add_argument
    g('--opt', default='sgd', metavar='NAME', help='optimizer, any of timm.optim.list_optimizers()')
    g('--opt-eps', type=number(least=0), default=None, metavar='X',
      help="the optimizer's ε, which keeps its divisions finite (default: its own)")
    g('--opt-betas', type=number(least=0, below=1), nargs='+', default=None, metavar='X',
      help="shares that the optimizer's running means keep at each update (default: its own)")
    g('--momentum', type=float, default=0.9, metavar='M',
      help='share of the last update that the next one keeps, of optimizers that have it')
    g('--weight-decay', type=number(least=0), default=2e-5, metavar='X',
      help='weight decay, of all weights but biases and norm layers')
    g('--clip-grad', type=number(above=0), default=None, metavar='X',
      help='clip gradients above this size, measured as --clip-mode says (default: no clipping)')
    g('--clip-mode', choices=('norm', 'value', 'agc'), default='norm',
      help='norm: of the whole gradient; value: of each element; agc: of each unit, relative to its weights')
    g('--layer-decay', type=number(above=0, most=1), default=None, metavar='X',
      help='learning rate of a layer, as a share of that of the layer above')
    g('--layer-decay-min-scale', type=SHARE, default=0.0, metavar='X',
      help='no layer gets less of the learning rate than this share')
    g('--layer-decay-no-opt-scale', type=SHARE, default=None, metavar='X',
      help='layers that would get less than this share are frozen')
    g('--opt-kwargs', nargs='*', default={}, action=KeyValues, metavar='K=V', help='more arguments of the optimizer')

    g = parser.add_argument_group('Learning rate').add_argument
    g('--sched', default='cosine', metavar='NAME',
      help='schedule of the learning rate: cosine, step, multistep, poly, …')
    g('--sched-on-updates', action=on_off, default=False, help='step the schedule on updates, not epochs')
    g('--lr', type=number(least=0), default=None, metavar='LR', help='learning rate (default: from --lr-base)')
    g('--lr-base', type=number(least=0), default=0.1, metavar='LR',
      help='learning rate at a batch of --lr-base-size images')
    g('--lr-base-size', type=whole(least=1), default=256, metavar='N',
      help='batch size, over all ranks and --grad-accum-steps, that --lr-base is meant for')
    g('--lr-base-scale', choices=('', 'linear', 'sqrt'), default='',
      help='how the learning rate follows the batch size (default: by optimizer, sqrt for ada* and lamb)')
    g('--lr-noise', type=SHARE, nargs='+', default=None, metavar='X',
      help='noise on the learning rate from, or between, these shares of the run')
    g('--lr-noise-pct', type=number(least=0), default=0.67, metavar='X',
      help='limit of the noise, as a share of the learning rate')
    g('--lr-noise-std', type=number(least=0), default=1.0, metavar='X', help='standard deviation of the noise')
    g('--lr-cycle-mul', type=number(above=0), default=1.0, metavar='X',
      help='length of each cycle, as a multiple of the one before')
    g('--lr-cycle-decay', type=number(above=0), default=0.5, metavar='X',
      help='height of each cycle, as a multiple of the one before')
    g('--lr-cycle-limit', type=whole(least=1), default=1, metavar='N', help='number of cycles')
    g('--lr-k-decay', type=number(above=0), default=1.0, metavar='X',
      help='power of the progress in the cosine and poly schedules: above 1 the rate falls later')
    g('--lr-decay-fn', default=None, metavar='NAME', help='shape of the decay of wsd and rsqrt')
    g('--lr-stable-timescale', type=number(above=0), default=None, metavar='N', help='timescale of rsqrt, in epochs')
    g('--warmup-lr', type=number(least=0), default=1e-5, metavar='LR',
      help='learning rate that the warm-up starts with')
    g('--min-lr', type=number(least=0), default=0.0, metavar='LR', help='lowest learning rate of the schedule')
    g('--epochs', type=whole(least=1), default=300, metavar='N',
      help='passes over the training images, before the cooldown')
    g('--epoch-repeats', type=number(least=0), default=0.0, metavar='N', help='passes over a stream in one epoch')
    g('--start-epoch', type=whole(least=0), default=None, metavar='N', help='resume at this epoch; the first is 0')
    g('--stop-epoch', type=whole(least=1), default=None, metavar='N',
      help='stop after N epochs of the schedule, which stays that of --epochs')
    g('--decay-milestones', type=whole(least=1), nargs='+', default=[90, 180, 270], metavar='N',
      help='multistep: epochs at which the learning rate decays')
    g('--decay-epochs', type=number(above=0), default=None, metavar='N',
      help='step: epochs between decays (default: 90); wsd and rsqrt: the decay at the end (default: the last fifth, '
           '0.2)')
    g('--decay-rate', '--dr', type=number(above=0), default=0.1, metavar='X',
      help='factor of the learning rate at each decay; of poly the power')
    g('--warmup-epochs', type=whole(least=0), default=5, metavar='N',
      help='epochs in which the learning rate rises from --warmup-lr')
    g('--warmup-prefix', action=on_off, default=False, help='warm-up comes on top of the epochs')
    g('--cooldown-epochs', type=whole(least=0), default=0, metavar='N',
      help='epochs at the lowest learning rate, after --epochs')
    g('--patience-epochs', type=whole(least=0), default=10, metavar='N',
      help='plateau: epochs without a better result before the learning rate decays')

    g = parser.add_argument_group('Augmentation and regularisation').add_argument
    g('--no-aug', action='store_true', help='no training augmentation')
    g('--train-crop-mode', choices=('rrc', 'rkrc', 'rkrr'), default=None,
      help='rrc: crops of random size and shape; rkrc: the shape is nearly kept, centre crop; rkrr: the same, random '
           'crop (default: rrc)')
    g('--scale', type=number(above=0, most=1), nargs=2, default=[0.08, 1.0], metavar='X',
      help='area of random resized crops, as a share of the image: smallest and largest')
    g('--ratio', type=number(above=0), nargs=2, default=[3 / 4, 4 / 3], metavar='X',
      help='aspect ratio of random resized crops: smallest and largest')
    g('--train-crop-pad', type=whole(least=0), default=None, metavar='N',
      help='in place of random resized crops: pad by N pixels and crop at random, as usual on CIFAR with 4 (not in '
           'timm)')
    g('--pca-lighting', type=number(least=0), default=0.0, metavar='X',
      help="strength of ImageNet's colour shifts, usually 0.1 (not in timm)")
    g('--hflip', type=SHARE, default=0.5, metavar='P', help='probability of mirroring an image left to right')
    g('--vflip', type=SHARE, default=0.0, metavar='P', help='probability of turning an image upside down')
    g('--color-jitter', type=number(least=0), default=0.4, metavar='X',
      help='largest relative change of brightness, contrast and saturation; none with --aa')
    g('--color-jitter-prob', type=SHARE, default=None, metavar='P',
      help='probability of any color jitter (default: always)')
    g('--grayscale-prob', type=SHARE, default=None, metavar='P',
      help='probability of making an image grey (default: never)')
    g('--gaussian-blur-prob', type=SHARE, default=None, metavar='P',
      help='probability of blurring an image (default: never)')
    g('--aug-repeats', type=number(least=0), default=0, metavar='N',
      help='times that an image is augmented, each on another process (torchrun)')
    g('--aa', default=None, metavar='NAME', help='AutoAugment or RandAugment policy, such as rand-m9-mstd0.5-inc1')
    g('--reprob', type=SHARE, default=0.0, metavar='P', help='probability of random erasing')
    g('--remode', choices=('pixel', 'rand', 'const'), default='pixel',
      help='what erased pixels become. pixel: noise; rand: one random colour; const: the mean colour')
    g('--recount', type=whole(least=1), default=1, metavar='N',
      help='rectangles that are erased at most, in an image where any is')
    g('--resplit', action=on_off, default=False, help='no random erasing in the first half of a batch')
    g('--train-interpolation', choices=('', *INTERPOLATIONS, 'random'), default='random',
      help='how training images are resized; random: bilinear or bicubic')
    g('--mixup', type=values['mixup'], default=None, metavar='A',
      help='α of input mixup (timm: 0; with --multimix: 1; preset paper: 2; other presets or --cutmix alone: 0)')
    g('--cutmix', type=values['cutmix'], default=None, metavar='A',
      help='α of CutMix (timm: 0; with --multimix: 1; other presets or --mixup alone: 0)')
    g('--cutmix-minmax', type=SHARE, nargs=2, default=None, metavar='X',
      help="smallest and largest side of cutmix's box, as a share of the image's; in place of --cutmix")
    g('--mixup-prob', type=SHARE, default=1.0, metavar='P',
      help='probability of mixup or cutmix on a step that has them')
    g('--mixup-switch-prob', type=SHARE, default=0.5, metavar='P',
      help='probability of cutmix, not mixup, where both are on')
    g('--mixup-mode', choices=('batch', 'pair', 'elem'), default='batch',
      help='what has a λ of its own: the batch, each pair of images, or each image')
    g('--mixup-off-epoch', type=whole(least=0), default=0, metavar='N',
      help='no mixup or cutmix from this epoch on; 0 is never')
    g('--smoothing', type=values['label_smoothing'], default=None, metavar='X',
      help='label smoothing (default: 0.1; with --multimix: 0)')
    g('--class-weight', default=None, metavar='FILE',
      help="weights of the classes in the loss, of mixtures too. auto: by inverse frequency; or a file of numbers, or "
           "of lines 'name: number'")
    g('--loss', choices=LOSSES, default=None,
      help='ce: cross-entropy; bce: the same as --bce-loss; those that timm alone has are not taken')
    g('--loss-pos-weight', default=None, metavar='X', help='one number: the same as --bce-pos-weight')
    g('--bce-loss', action=on_off, default=False, help=SETTINGS['bce_loss'].help)
    g('--bce-sum', action=on_off, default=False, help=SETTINGS['bce_sum'].help)
    g('--bce-target-thresh', type=values['bce_target_thresh'], default=None, metavar='X',
      help=SETTINGS['bce_target_thresh'].help)
    g('--bce-pos-weight', type=number(least=0), default=None, metavar='X',
      help='weight of the positive terms (--multimix none)')
    g('--bn-momentum', type=SHARE, default=None, metavar='X',
      help="momentum of every batch norm (default: the model's)")
    g('--bn-eval', action=on_off, default=False,
      help='freeze the statistics of batch norms as they came with the weights; for few images')
    g('--bn-eps', type=number(above=0), default=None, metavar='X',
      help="ε of the batch norms, of models that take it (default: the model's)")

    g = parser.add_argument_group('Averaged weights (EMA)').add_argument
    g('--model-ema', action=on_off, default=False,
      help='average the weights over the updates; the average is validated and published')
    g('--model-ema-force-cpu', action=on_off, default=False,
      help='keep the average on the CPU, where it is not validated')
    g('--model-ema-decay', type=SHARE, default=0.9998, metavar='X',
      help='share of the average that stays at each update')
    g('--model-ema-warmup', action=on_off, default=False,
      help='let the share rise to --model-ema-decay, from a smaller one')

    g = parser.add_argument_group('Several ranks (torchrun)').add_argument
    g('--sync-bn', action=on_off, default=False, help='BatchNorm over the batch of all ranks (GPUs only)')
    g('--dist-bn', choices=('reduce', 'broadcast', ''), default='reduce',
      help="BatchNorm statistics after each epoch: averaged over the ranks, the first rank's, or each its own")
    g('--no-ddp-bb', action='store_true', help="do not send the first rank's buffers to the others on every step")

    g = parser.add_argument_group('Run').add_argument
    g('--seed', type=SEED, default=42, metavar='N', help='seed of all random numbers')
    g('--worker-seeding', choices=('all', 'part'), default='all',
      help='seed all generators of a data loading process, or part of them as timm did before; of streams alone, other '
           'images are seeded by their place')
    g('-j', '--workers', type=whole(least=0), default=min(4, CORES), metavar='N',
      help='data loading processes; 4 by default, or as many as there are cores')
    g('--persistent-workers', action=on_off, default=True, help='keep data loading processes between epochs')
    g('--pin-mem', action=on_off, default=False,
      help='keep batches in pinned memory, from which they reach the GPU faster')
    g('--no-prefetcher', action='store_true', help='normalise images in the workers, not on the GPU')
    g('--save-images', action=on_off, default=False, help='save the batches of every log interval as pictures')
    g('--log-interval', type=whole(least=1), default=50, metavar='N',
      help='updates between refreshes of loss and accuracy')
    g('--val-interval', type=whole(least=1), default=1, metavar='N', help='epochs between validations and checkpoints')
    g('--checkpoint-hist', type=whole(least=1), default=10, metavar='N', help='checkpoints to keep')
    g('--save-epochs', type=whole(least=1), nargs='+', default=[], metavar='N',
      help='keep a checkpoint after N epochs, as milestone-N.pth.tar; these epochs are validated')
    g('--recovery-interval', type=whole(least=0), default=0, metavar='N',
      help='a checkpoint within the epoch every N updates')
    g('--nonfinite-limit', type=whole(least=1), default=10, metavar='N',
      help='updates whose loss is not finite are skipped; this many in a row end the run')
    g('--eval-metric', choices=('top1', 'top5', 'loss', 'balanced'), default='top1',
      help='picks model_best, of the epochs that are validated; balanced is the mean over classes of top1')
    g('--log', nargs='+', choices=LOGGERS, default=None, help='where metrics are written beside summary.csv')
    g('--log-wandb', action=on_off, default=False, help='the same as --log wandb')
    g('--wandb-project', default=None, metavar='NAME', help='project at wandb or trackio')
    g('--wandb-tags', nargs='+', default=[], metavar='TAG', help='tags of the run at wandb')
    g('--wandb-resume-id', default='', metavar='ID', help='continue this wandb run, with --resume')
    g('--output', default='', metavar='DIR', help='where runs go (default: ./output/train)')
    g('--experiment', default='', metavar='NAME', help='folder of this run (default: date-model-size)')

    g = parser.add_argument_group('Hugging Face Hub').add_argument
    g('--push-to-hub', default='', metavar='user/name',
      help='push the run there at the end: a plain timm model with a card')
    g('--push-every', type=whole(least=1), default=None, metavar='K',
      help='push every K epochs too, while training goes on')
    g('--push-private', action=on_off, default=False, help='make the repository private')
    add_not_taken(parser)
    return parser


def on_the_line(argv: Optional[list[str]]) -> dict[str, Any]:
    """The flags that were given."""
    parser = build_parser()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return vars(parser.parse_args(argv))


LOGGERS = ('wandb', 'tensorboard', 'trackio')
