"""The flags of train.py: timm's names, meanings and defaults, and the method's own."""
from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn, Optional, Union

from timm.utils import ParseKwargs

from ..config import (
    ALIASES,
    ATTENTION_NORMS,
    ATTENTIONS,
    ENGINES,
    MODES,
    NORMALIZATIONS,
    PRESET_WORDS,
    PRESETS,
)
from ..data import DIGITS
from ..errors import nearest
from .not_taken import NOT_TAKEN, add_not_taken

MULTIMIX_FLAGS = ('preset', 'n', 'm', 'alpha', 'effective', 'prob', 'ramp', 'ramp_epochs', 'clean_weight', 'attention',
                  'attention_norm', 'attention_detach', 'normalize', 'layer', 'engine', 'gather', 'keep_norm')
# What says something about the machine and the screen, and nothing about the model.
OF_THE_MACHINE = ('resume', 'config', 'output', 'experiment', 'workers', 'persistent_workers', 'no_prefetcher',
                  'device', 'device_modules', 'pin_mem', 'log_interval', 'checkpoint_hist', 'recovery_interval',
                  'save_images', 'log', 'log_wandb', 'wandb_project', 'wandb_tags', 'wandb_resume_id', 'push_to_hub',
                  'push_every', 'push_private')
# What the same run may be gone on with in another way: `--resume auto` does not look at these.
FREE_ON_RESUME = (*OF_THE_MACHINE, 'epochs', 'nonfinite_limit', 'bad_images', 'dataset_download', 'start_epoch',
                  *NOT_TAKEN)
INTERPOLATIONS = ('bilinear', 'bicubic', 'nearest', 'lanczos', 'box', 'hamming')


class KeyValues(ParseKwargs):
    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: Optional[str] = None) -> None:
        for value in values:
            if '=' not in value:
                parser.error(f'{option_string} takes arguments as key=value, not {value!r}')
        super().__call__(parser, namespace, values, option_string)


def _number_or(word: str) -> Callable[[str], Union[int, str]]:
    """The type of a flag that takes a whole number or one word."""
    def read(value: str) -> Union[int, str]:
        return word if value == word else int(value)
    read.__name__, read.whole = f'whole number or {word!r}', True  # type: ignore[attr-defined]
    return read


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if message.startswith('unrecognized arguments: '):
            for word in message.split(': ', 1)[1].split():
                if word.startswith('--'):
                    message += nearest(word.split('=')[0], self._option_string_actions)
                    break
        self.exit(2, f'{self.prog}: error: {message}\n({self.prog} --help lists the flags.)\n')


def build_parser() -> argparse.ArgumentParser:
    """All flags. Help texts say where a default differs from timm's."""
    parser = Parser(
        description='Train a timm model with MultiMix or Dense MultiMix.', allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add, on_off = parser.add_argument, argparse.BooleanOptionalAction
    add('-c', '--config', metavar='FILE',
        help='YAML file of defaults, whose keys are flag names with underscores; or the name of a recipe of hparams/')
    add('data', nargs='?', metavar='DIR', help='the same as --data-dir')

    g = parser.add_argument_group('MultiMix').add_argument
    g('--multimix', choices=('none', *MODES), default='none', help='mix pooled embeddings, or all positions')
    g('--multimix-preset', choices=(*PRESETS, *ALIASES), metavar='NAME', help='where settings not given come from: '
      + '; '.join(f'{name}: {words}' for name, words in PRESET_WORDS.items()) + ' (default: default)')
    g('--multimix-n', type=_number_or('batch'), metavar='N', help='mixed examples per step, for dense per position; '
      "'batch' for as many as the batch has (preset: 1000)")
    g('--multimix-m', type=int, metavar='N', help='examples mixed in each (preset: the batch)')
    g('--multimix-alpha', type=float, nargs='+', metavar='A', help='Dirichlet concentration, one number or a range')
    g('--multimix-effective', type=float, nargs='+', metavar='E',
      help='the same as an effective number of examples, one number or a range (preset: 1.5 3)')
    g('--multimix-prob', type=float, metavar='P', help='probability of mixing embeddings on a step (preset: 0.25)')
    g('--multimix-ramp', type=float, metavar='R', help='embeddings and inputs are mixed on a share of the steps that '
      'grows from none to all over this fraction of the training; 0: from the start (preset: 0.5, all others 0)')
    g('--multimix-ramp-epochs', type=float, metavar='E', help='the same in epochs')
    g('--multimix-clean-weight', type=float, metavar='W', help='weight of the unmixed loss (preset: 1)')
    g('--multimix-attention', choices=ATTENTIONS, help='dense: where labels are believed (preset: gap)')
    g('--multimix-attention-norm', choices=ATTENTION_NORMS, help='dense: (preset: l1_relu)')
    g('--multimix-attention-detach', action=on_off, default=None, help='dense: attention is a constant (preset: yes)')
    g('--multimix-normalize', choices=NORMALIZATIONS, help='dense: weights sum to one at each position, or over all')
    g('--multimix-layer', nargs='+', metavar='L', help='multimix: mix the embedding (the default), the input, a stage '
      'by its number, or any module by its name; of several, one is drawn each step')
    g('--multimix-engine', choices=ENGINES, help='what computes the loss (default: triton on CUDA, else torch)')
    g('--multimix-gather', action=on_off, default=None, help='under torchrun: mix the batch of all ranks, not of each')
    g('--multimix-task', metavar='MODULE:CLASS', help='a subclass of timm_multimix.MultiMixTask to train with')
    g('--multimix-keep-norm', action=on_off, default=None, help='divide a mixture by the norm of its weights')

    g = parser.add_argument_group('Dataset').add_argument
    g('--data-dir', metavar='DIR', help='folder of images: one sub-folder per split, in it one per class')
    g('--dataset', default=None, metavar='NAME', help=f'as in timm: torch/cifar10, hfds/…; without --data-dir {DIGITS}')
    g('--train-split', default='train', metavar='NAME', help=' ')
    g('--val-split', default='validation', metavar='NAME', help=' ')
    g('--dataset-download', action=on_off, default=False, help='let torch/, hfids/ and tfds/ data sets download')
    g('--train-num-samples', type=int, default=None, metavar='N', help='of a stream that does not say')
    g('--val-num-samples', type=int, default=None, metavar='N', help='of a stream that does not say')
    g('--input-key', default=None, metavar='NAME', help='hfds/, hfids/, tfds/, wds/: the column of the images')
    g('--target-key', default=None, metavar='NAME', help='hfds/, hfids/, tfds/, wds/: the column of the classes')
    g('--dataset-trust-remote-code', action=on_off, default=False, help='hfds/, hfids/: run code of the data set')
    g('--input-img-mode', default=None, metavar='MODE', help='RGB, L, … (default: RGB, with --in-chans 1 L)')
    g('--class-map', default='', metavar='FILE', help='class to index mapping')
    g('--bad-images', choices=('error', 'skip', 'ignore'), default='error',
      help='every image of a folder is opened before training; unreadable ones stop it or are left out. '
           "'ignore' does not look (timm then replaces an unreadable image by its neighbour)")

    g = parser.add_argument_group('Model').add_argument
    g('--model', default='resnet50', metavar='MODEL', help='a timm model name, hf-hub:… or local-dir:…')
    g('--pretrained', action=on_off, default=False, help='start from its published weights')
    g('--pretrained-path', default=None, metavar='FILE', help='start from these weights, with a new classifier and '
      'other adaptations to the task, in place of the published ones')
    g('--initial-checkpoint', default='', metavar='FILE', help='start from these weights, which fit as they are: a '
      'file, or hf-hub:user/name or local-dir:…, which say the model too')
    g('--resume', default='', metavar='PATH', help='a run folder or checkpoint to go on with, in that folder and with '
      "its args.yaml; 'auto': the newest run in --output (or --experiment there) that these flags do not contradict, "
      'else a new one')
    g('--no-resume-opt', action='store_true', help='do not resume the optimizer')
    g('--num-classes', type=int, default=None, metavar='N', help='default: as many as the data set has')
    g('--gp', default=None, metavar='POOL', help='global pooling of the model')
    g('--img-size', type=int, default=None, metavar='N', help="default: the model's; 32 for the embedded data set")
    g('--in-chans', type=int, default=None, metavar='N', help=' ')
    g('--input-size', type=int, nargs=3, default=None, metavar='N', help='channels, height, width')
    g('--crop-pct', type=float, default=None, metavar='N', help='of the validation image')
    g('--mean', type=float, nargs='+', default=None, metavar='X', help=' ')
    g('--std', type=float, nargs='+', default=None, metavar='X', help=' ')
    g('--interpolation', choices=('', *INTERPOLATIONS), default='', help='of validation images')
    g('-b', '--batch-size', type=int, default=128, metavar='N', help=' ')
    g('-vb', '--validation-batch-size', type=int, default=None, metavar='N', help=' ')
    g('--channels-last', action=on_off, default=False, help=' ')
    g('--grad-accum-steps', type=int, default=1, metavar='N', help='batches per update')
    g('--grad-checkpointing', action=on_off, default=False, help=' ')
    g('--fast-norm', action=on_off, default=False, help='norm layers in low precision under --amp')
    g('--head-init-scale', type=float, default=None, metavar='X', help='multiply the initial classifier')
    g('--head-init-bias', type=float, default=None, metavar='X', help="the classifier's initial bias")
    g('--torchcompile', nargs='?', const='inductor', default=None, metavar='BACKEND', help='torch.compile the model')
    g('--torchcompile-mode', default=None, metavar='MODE', help='default, reduce-overhead, max-autotune, …')
    g('--model-kwargs', nargs='*', default={}, action=KeyValues, metavar='K=V', help='for timm.create_model')
    g('--drop', type=float, default=0.0, metavar='P', help='dropout')
    g('--drop-path', type=float, default=None, metavar='P', help='stochastic depth')
    g('--drop-block', type=float, default=None, metavar='P', help='DropBlock, of the models that have it')

    g = parser.add_argument_group('Device').add_argument
    g('--device', default='auto', help='auto (CUDA, else MPS, else CPU), cuda, cuda:1, mps, cpu (timm: cuda)')
    g('--amp', action=on_off, default=False, help='mixed precision')
    g('--amp-dtype', choices=('float16', 'bfloat16'), default=None, help='float16, on the CPU bfloat16')
    g('--model-dtype', choices=('float32', 'bfloat16', 'float16'), default=None, help='of the weights (float32)')
    g('--device-modules', nargs='+', default=None, metavar='NAME', help='Python modules that bring the device')

    g = parser.add_argument_group('Optimizer').add_argument
    g('--opt', default='sgd', metavar='NAME', help='any of timm.optim.list_optimizers()')
    g('--opt-eps', type=float, default=None, metavar='X', help=' ')
    g('--opt-betas', type=float, nargs='+', default=None, metavar='X', help=' ')
    g('--momentum', type=float, default=0.9, metavar='M', help=' ')
    g('--weight-decay', type=float, default=2e-5, metavar='X', help=' ')
    g('--clip-grad', type=float, default=None, metavar='X', help=' ')
    g('--clip-mode', choices=('norm', 'value', 'agc'), default='norm', help=' ')
    g('--layer-decay', type=float, default=None, metavar='X', help='layer-wise learning rate decay')
    g('--layer-decay-min-scale', type=float, default=0.0, metavar='X', help='no layer gets less of the rate than this')
    g('--layer-decay-no-opt-scale', type=float, default=None, metavar='X', help='layers that would get less are frozen')
    g('--opt-kwargs', nargs='*', default={}, action=KeyValues, metavar='K=V', help=' ')

    g = parser.add_argument_group('Learning rate').add_argument
    g('--sched', default='cosine', metavar='NAME', help='cosine, step, multistep, poly, …')
    g('--sched-on-updates', action=on_off, default=False, help='step the schedule on updates, not epochs')
    g('--lr', type=float, default=None, metavar='LR', help='overrides --lr-base')
    g('--lr-base', type=float, default=0.1, metavar='LR', help='lr = lr_base * batch size / lr_base_size')
    g('--lr-base-size', type=int, default=256, metavar='N', help=' ')
    g('--lr-base-scale', choices=('', 'linear', 'sqrt'), default='', help='by optimizer: sqrt for ada*, lamb')
    g('--lr-noise', type=float, nargs='+', default=None, metavar='X', help='noise from, or between, these shares of '
      'the run')
    g('--lr-noise-pct', type=float, default=0.67, metavar='X', help='its limit')
    g('--lr-noise-std', type=float, default=1.0, metavar='X', help=' ')
    g('--lr-cycle-mul', type=float, default=1.0, metavar='X', help='length of a cycle, of the one before')
    g('--lr-cycle-decay', type=float, default=0.5, metavar='X', help='height of a cycle, of the one before')
    g('--lr-cycle-limit', type=int, default=1, metavar='N', help='number of cycles')
    g('--lr-k-decay', type=float, default=1.0, metavar='X', help=' ')
    g('--lr-decay-fn', default=None, metavar='NAME', help='of wsd and rsqrt')
    g('--lr-stable-timescale', type=float, default=None, metavar='N', help='of rsqrt, in epochs')
    g('--warmup-lr', type=float, default=1e-5, metavar='LR', help=' ')
    g('--min-lr', type=float, default=0.0, metavar='LR', help=' ')
    g('--epochs', type=int, default=300, metavar='N', help=' ')
    g('--epoch-repeats', type=float, default=0.0, metavar='N', help='passes over a stream in one epoch')
    g('--start-epoch', type=int, default=None, metavar='N', help='go on with this epoch, the first is 0')
    g('--decay-milestones', type=int, nargs='+', default=[90, 180, 270], metavar='N', help=' ')
    g('--decay-epochs', type=float, default=None, metavar='N', help='step: 90; wsd and rsqrt: the last fifth, 0.2')
    g('--decay-rate', '--dr', type=float, default=0.1, metavar='X', help=' ')
    g('--warmup-epochs', type=int, default=5, metavar='N', help=' ')
    g('--warmup-prefix', action=on_off, default=False, help='warm-up comes on top of the epochs')
    g('--cooldown-epochs', type=int, default=0, metavar='N', help=' ')
    g('--patience-epochs', type=int, default=10, metavar='N', help=' ')

    g = parser.add_argument_group('Augmentation and regularisation').add_argument
    g('--no-aug', action='store_true', help='no training augmentation')
    g('--train-crop-mode', choices=('rrc', 'rkrc', 'rkrr'), default=None, help=' ')
    g('--scale', type=float, nargs=2, default=[0.08, 1.0], metavar='X', help='of random resized crops')
    g('--ratio', type=float, nargs=2, default=[3 / 4, 4 / 3], metavar='X', help='of random resized crops')
    g('--train-crop-pad', type=int, default=None, metavar='N', help='in place of random resized crops: pad by N pixels '
      "and crop at random, as usual on CIFAR with 4 (not timm's)")
    g('--pca-lighting', type=float, default=0.0, metavar='X', help="ImageNet's colour shifts, usually 0.1 (not timm's)")
    g('--hflip', type=float, default=0.5, metavar='P', help=' ')
    g('--vflip', type=float, default=0.0, metavar='P', help=' ')
    g('--color-jitter', type=float, default=0.4, metavar='X', help=' ')
    g('--color-jitter-prob', type=float, default=None, metavar='P', help='of any color jitter (default: always)')
    g('--grayscale-prob', type=float, default=None, metavar='P', help=' ')
    g('--gaussian-blur-prob', type=float, default=None, metavar='P', help=' ')
    g('--aug-repeats', type=float, default=0, metavar='N', help='times that an image is augmented, each on '
      'another process (torchrun)')
    g('--aa', default=None, metavar='NAME', help='AutoAugment or RandAugment policy')
    g('--reprob', type=float, default=0.0, metavar='P', help='random erasing')
    g('--remode', choices=('pixel', 'rand', 'const'), default='pixel', help=' ')
    g('--recount', type=int, default=1, metavar='N', help=' ')
    g('--resplit', action=on_off, default=False, help='no random erasing in the first half of a batch')
    g('--train-interpolation', choices=('', *INTERPOLATIONS, 'random'), default='random', help=' ')
    g('--mixup', type=float, default=None, metavar='A', help='input mixup (timm: 0; with --multimix 1, for preset '
      'paper 2, for the others 0)')
    g('--cutmix', type=float, default=None, metavar='A', help='input cutmix (timm: 0; with --multimix 1, for all '
      'presets but default 0)')
    g('--cutmix-minmax', type=float, nargs=2, default=None, metavar='X', help=' ')
    g('--mixup-prob', type=float, default=1.0, metavar='P', help='of mixup or cutmix on a step that has them')
    g('--mixup-switch-prob', type=float, default=0.5, metavar='P', help='of cutmix where both are on')
    g('--mixup-mode', choices=('batch', 'pair', 'elem'), default='batch', help=' ')
    g('--mixup-off-epoch', type=int, default=0, metavar='N', help='no mixup or cutmix from this epoch on; 0 is never')
    g('--smoothing', type=float, default=None, metavar='X', help='label smoothing (default: 0.1, with --multimix 0)')
    g('--class-weight', default=None, metavar='FILE', help='weights of the classes in the loss, of mixtures too: a '
      "file of numbers, or of names and numbers; 'auto': by inverse frequency")
    g('--bce-loss', action=on_off, default=False, help='binary cross-entropy')
    g('--bce-sum', action=on_off, default=False, help='its sum over the classes, not the mean')
    g('--bce-target-thresh', type=float, default=None, metavar='X', help='targets above become 1, others 0')
    g('--bce-pos-weight', type=float, default=None, metavar='X', help='weight of the positive terms (--multimix none)')
    g('--bn-momentum', type=float, default=None, metavar='X', help='of every batch norm')
    g('--bn-eps', type=float, default=None, metavar='X', help='of models that take it')

    g = parser.add_argument_group('Averaged weights (EMA)').add_argument
    g('--model-ema', action=on_off, default=False, help=' ')
    g('--model-ema-force-cpu', action=on_off, default=False, help='kept on the CPU and not validated')
    g('--model-ema-decay', type=float, default=0.9998, metavar='X', help=' ')
    g('--model-ema-warmup', action=on_off, default=False, help=' ')

    g = parser.add_argument_group('Several ranks (torchrun)').add_argument
    g('--sync-bn', action=on_off, default=False, help='BatchNorm over the batch of all ranks (GPUs only)')
    g('--dist-bn', choices=('reduce', 'broadcast', ''), default='reduce',
      help="BatchNorm statistics after each epoch: averaged over the ranks, the first rank's, or each its own")
    g('--no-ddp-bb', action='store_true', help="do not send the first rank's buffers to the others on every step")

    g = parser.add_argument_group('Run').add_argument
    g('--seed', type=int, default=42, metavar='N', help=' ')
    g('--worker-seeding', choices=('all', 'part'), default='all', help='part: as timm did before')
    g('-j', '--workers', type=int, default=4, metavar='N', help='data loading processes')
    g('--persistent-workers', action=on_off, default=True, help='keep them between epochs')
    g('--pin-mem', action=on_off, default=False, help=' ')
    g('--no-prefetcher', action='store_true', help='normalise images in the workers, not on the GPU')
    g('--save-images', action=on_off, default=False, help='save the batches of every log interval as pictures')
    g('--log-interval', type=int, default=50, metavar='N', help='updates between refreshes of loss and accuracy')
    g('--val-interval', type=int, default=1, metavar='N', help='epochs between validations and checkpoints')
    g('--checkpoint-hist', type=int, default=10, metavar='N', help='checkpoints to keep')
    g('--recovery-interval', type=int, default=0, metavar='N', help='a checkpoint within the epoch every N updates')
    g('--nonfinite-limit', type=int, default=10, metavar='N',
      help='updates whose loss is no number are left out; so many in a row end the run')
    g('--eval-metric', choices=('top1', 'top5', 'loss'), default='top1', help='picks model_best')
    g('--log', nargs='+', choices=LOGGERS, default=None, help='where to write the metrics too')
    g('--log-wandb', action=on_off, default=False, help='the same as --log wandb')
    g('--wandb-project', default=None, metavar='NAME', help='project at wandb or trackio')
    g('--wandb-tags', nargs='+', default=[], metavar='TAG', help=' ')
    g('--wandb-resume-id', default='', metavar='ID', help='go on with this run of wandb, with --resume')
    g('--output', default='', metavar='DIR', help='where runs go (default: ./output/train)')
    g('--experiment', default='', metavar='NAME', help='folder of this run (default: date-model-size)')

    g = parser.add_argument_group('Hugging Face Hub').add_argument
    g('--push-to-hub', default='', metavar='user/name', help='push the run there at the end: a plain timm model '
      'with a card')
    g('--push-every', type=int, default=None, metavar='K', help='and every K epochs, while training goes on')
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
