"""Every setting of the method: its default, its meaning and its checks."""
from __future__ import annotations

import dataclasses
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, Union

from .errors import SettingError, nearest
from .setting import SHARE, Number, Setting, number, setting, whole

Range = Union[float, tuple[float, float]]
Layer = Union[str, int]

MODES = ('multimix', 'dense')
ATTENTIONS = ('gap', 'cam', 'uniform', 'self', 'learned')
UNNORMALIZED = ('uniform', 'self', 'learned')  # those without a choice of h
ATTENTION_NORMS = ('l1_relu', 'softmax')
ENGINES = ('auto', 'torch', 'triton')
NORMALIZATIONS = ('position', 'all')
TUPLES = ('any', 'within', 'across')
READINGS = ('targets', 'logits')
VIEWS = ('same', 'flip')
TEACHES = ('image', 'position')
EMA, GIVEN = 'ema', 'given'  # teachers that are no names of networks

# Settings that a preset decides. `paper` is the literal method. `default` and `embeddings` train in a normal budget: a
# clean term, and a mixed term that blends a handful of examples instead of the whole batch. `default` takes turns with
# timm's mixup and CutMix, and mixes the more the longer the training has gone on, which is what the evidence favours
# (docs/results.md). `manifold` and `regmixup` are other methods, as settings of this one.
PRESETS: dict[str, dict[str, Any]] = {
    'default': dict(n=1000, effective=(1.5, 3.0), prob=0.25, ramp=0.5, clean_weight=1.0, mixup=1.0, cutmix=1.0),
    'embeddings': dict(n=1000, effective=(1.5, 3.0), prob=1.0, ramp=0.0, clean_weight=1.0, mixup=0.0, cutmix=0.0),
    'paper': dict(n=1000, alpha=(0.5, 2.0), prob=0.5, ramp=0.0, clean_weight=0.0, mixup=2.0, cutmix=0.0),
    'manifold': dict(n='batch', m=2, alpha=(1.0, 1.0), prob=1.0, ramp=0.0, clean_weight=0.0, mixup=0.0, cutmix=0.0),
    'regmixup': dict(layer='input', n='batch', m=2, alpha=(10.0, 10.0), prob=1.0, ramp=0.0, clean_weight=1.0,
                     mixup=0.0, cutmix=0.0),
}
PRESET_WORDS = {
    'default': 'embeddings on one step of four and inputs, by mixup or CutMix, on the others, beginning slowly',
    'embeddings': 'embeddings on every step, and no inputs',
    'paper': 'the published setting: whole batches, on half of the steps, and input mixup on the others',
    'manifold': 'pairs of embeddings on every step, as manifold mixup at the last layer',
    'regmixup': 'pairs of images on every step, beside the clean images, as RegMixup',
}

PAIRS = (('alpha', 'effective'), ('ramp', 'ramp_epochs'), ('teacher_start', 'teacher_start_epoch'))  # of one meaning

# Settings that are flags of timm's too, and keep their names.
TIMMS = ('mixup', 'cutmix', 'bce_loss', 'bce_sum', 'bce_target_thresh')


def flag(name: str) -> str:
    """The command-line flag of a setting, for error messages."""
    named = {'label_smoothing': '--smoothing', 'mode': '--multimix', 'class_weight': '--class-weight'}
    return named.get(name, ('--' if name in TIMMS else '--multimix-') + name.replace('_', '-'))


def _bad(name: str, value: Any, right: str) -> SettingError:
    return SettingError(f'{name} ({flag(name)}) is {value!r}, but {right}')


def _as_number(name: str, value: Any, values: Number) -> Any:
    right = values.wrong(value)
    if right:
        raise _bad(name, value, right)
    return value if values.whole or isinstance(value, str) else float(value)


def _as_range(name: str, value: Any, values: Number) -> tuple[float, float]:
    ends = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if len(ends) not in (1, 2):
        raise _bad(name, value, 'it must be one number, or two: the ends of a range.')
    for end in ends:
        if right := values.wrong(end):
            raise _bad(name, value, right)
    low, high = float(ends[0]), float(ends[-1])
    if low > high:
        raise _bad(name, value, f'a range starts with its smaller end: {high:g} {low:g}.')
    return low, high


def _as_setting(name: str, value: Any, about: Setting) -> Any:
    """The value of a setting as it is kept, checked for itself."""
    if isinstance(about.values, Number):
        return (_as_range if about.many else _as_number)(name, value, about.values)
    if about.values is bool and not isinstance(value, bool):
        raise _bad(name, value, 'it is True or False.')
    if isinstance(about.values, tuple) and value not in about.values:
        raise _bad(name, value, f'it must be one of {", ".join(about.values)}.{nearest(str(value), about.values)}')
    return value


def alpha_for_effective(effective: float, m: int) -> float:
    """The Dirichlet α at which m examples mix like `effective` equal ones (1 < effective < m): E[Σλ²] = (α+1)/(mα+1).

    The mean of 1/Σλ² that a run reports is somewhat above, as the mean of a reciprocal is: about 2.4 for 2 of 128.
    """
    return (effective - 1) / (m - effective)


@dataclass(frozen=True)
class MultiMixConfig:
    """Settings of MultiMix and Dense MultiMix. `MultiMixConfig('dense')` is the default preset.

    A setting left at `None` takes its value from the preset. Use `MultiMixConfig('dense', preset='paper', n=500)` or
    `config.replace(n=500)`; instances do not change.

    Raises:
        SettingError: naming the setting, its value, and what would be right.
    """

    mode: str = setting(
        'dense', "'multimix' mixes the pooled embeddings of the mini-batch, 'dense' its features at every position",
        MODES)
    preset: str = setting(
        'default', 'decides what is not given; '
        + '; '.join(f'{name!r}: {words}' for name, words in PRESET_WORDS.items()), tuple(PRESETS), metavar='NAME',
        more="'paper' is arXiv 2311.05538, 'manifold' arXiv 1806.05236, 'regmixup' arXiv 2206.14502.")
    n: Union[int, str] = setting(
        None, "how many mixtures a step has, for dense at each position; 'batch': as many as the batch has images",
        whole(least=1, word='batch'), metavar='N')
    m: Optional[int] = setting(
        None, 'how many examples a mixture has, drawn at random from the batch; not given: the whole batch',
        whole(least=1), metavar='N')
    alpha: Optional[Range] = setting(
        None, 'concentration α of the Dirichlet distribution that draws the mixing weights; of two numbers, each step '
        'draws α between them', number(above=0), metavar='A', many=True)
    effective: Optional[Range] = setting(
        None, 'how many examples a mixture has effectively: 2 is about a pair, whatever the batch size; of two '
        'numbers, each step draws between them', number(above=1), metavar='E', many=True, more='It sets `alpha`, so '
        'give only one of both. It is 1 / mean Σλ². A run reports the mean of 1/Σλ², which is a little larger.')
    prob: float = setting(
        None, 'how often a step mixes embeddings; the other steps mix inputs where mixup or cutmix is above 0, and '
        'nothing where not', SHARE, metavar='P')
    ramp: Optional[float] = setting(
        None, 'the part of the training over which the share of steps that mix anything grows, from none to all; 0.5: '
        'the first half; 0: all mix from the start', SHARE, metavar='R', more='An image that was seen a few times is '
        'not memorised yet, and mixing then costs more than it gives. `train.py` knows how far the training is. Your '
        'own loop says it by `MultiMixModel.set_progress`.')
    ramp_epochs: Optional[float] = setting(
        None, 'ramp as a number of epochs, whatever the length of the training', number(least=0), metavar='E',
        more='Give this or `ramp`, not both.')
    mixup: float = setting(
        None, "α of timm's input mixup, on the steps that do not mix embeddings; with prob 1 on every step, before "
        'embeddings are mixed; 0: none', number(least=0), metavar='A', more='Given alone, it turns CutMix off.')
    cutmix: float = setting(
        None, 'α of CutMix, on the same steps; with both, each step draws one of them; 0: none', number(least=0),
        metavar='A', more='Given alone, it turns mixup off.')
    clean_weight: float = setting(
        None, 'weight of the loss on unmixed images; that of the mixed loss is 1', number(least=0), metavar='W',
        more='The loss is the weighted mean of both. So gradients stay as large as in ordinary training.')
    attention: str = setting(
        None, "where in an image its label is believed: 'gap' where features are like their mean, 'cam' where they are "
        "like the classifier's row of the class, 'uniform' everywhere, 'self' where a transformer's last "
        "self-attention looks, 'learned' where a linear map of the features learns to look", ATTENTIONS,
        modes=('dense',), usual='gap', more='The first two are the u of a = h(zᵀu). `self` takes a from the network: '
        'it is what a patch token receives on average. `learned` is a softmax over the positions. Its u learns by a '
        'loss of its own: the cross-entropy of the image from its features averaged by a. It begins uniform.')
    attention_lr: float = setting(
        None, 'learning rate of learned attention, which has an Adam of its own', number(above=0), metavar='LR',
        modes=('dense',), usual=1e-3)
    attention_norm: str = setting(
        None, 'the h of the attention a = h(zᵀu)', ATTENTION_NORMS, modes=('dense',), usual='l1_relu')
    attention_detach: bool = setting(
        None, 'the attention is a constant to the gradient', bool, modes=('dense',), usual=True, more='The maps say '
        'how far labels are believed. If the loss could move them, it would learn to look where the loss is small.')
    normalize: str = setting(
        None, "where the weights sum to one: at each 'position', whose losses are averaged, or over 'all' positions",
        NORMALIZATIONS, modes=('dense',), usual='position')
    layer: Union[Layer, Sequence[Layer]] = setting(
        None, "what is mixed: 'embedding', 'input', a stage by its number, or a block by its name; of several, each "
        'step draws one', metavar='L', many=True, modes=('multimix',), usual='embedding', more="Stages are "
        "numbered as in timm's `out_indices`. A block's output is mixed. The rest of "
        'the network must use only it, so layers within residual blocks raise an error, and so does a network whose '
        '`Parts` have a mask. The mixtures go through the rest of the network, beside the unmixed images if '
        '`clean_weight` is not 0. So there are as many as the batch '
        "has images. Give `n` for another number. Of several layers with 'embedding', `n` counts there alone.")
    engine: str = setting(
        'auto', "what computes the loss: 'torch', 'triton', or 'auto': Triton on CUDA where it can, torch elsewhere; "
        'the loss is the same', ENGINES)
    gather: bool = setting(
        False, 'in a distributed run, mix the batch of all ranks, not of each', bool, more='`m`, `effective` and the '
        'whole batch then mean the batch of all ranks. Each rank makes its share of the `n` mixtures. Logits, targets '
        'and attention travel. The gradient is that of one process with the whole batch. Every rank needs a batch of '
        'the same size. With one process it changes nothing.')
    label_smoothing: float = setting(
        0.0, 'smoothing of targets that are class indices, before they are mixed', number(least=0, below=1),
        metavar='X',
        more="Soft targets stay as they are: timm's Mixup smooths its own. So nothing is smoothed twice. train.py "
        'smooths by 0.1 with `--multimix none`, as timm does.')
    class_weight: Optional[Sequence[float]] = setting(
        None, 'a weight for each class in the loss, mixed and unmixed', more='As in '
        '`torch.nn.functional.cross_entropy`, the mean is weighted by the class. For mixtures it is weighted by the '
        'mixed target. Without it all weights are 1. The flag takes `auto`, the inverse frequency, or a file.')
    keep_norm: bool = setting(
        False, 'divide the logits of a mixture by ‖λ‖₂, as if it were as long as the examples in it; the model is then '
        'less overconfident', bool, more='Not in the paper.')
    bce_loss: bool = setting(
        False, 'binary cross-entropy of each class for itself, on mixed and unmixed images', bool,
        more="A mixture's target is then a probability for each class.")
    bce_sum: bool = setting(False, 'with bce_loss, the sum over the classes, not the mean', bool)
    bce_target_thresh: Optional[float] = setting(
        None, 'with bce_loss, targets above it become 1 and others 0: after inputs are mixed, before embeddings are',
        number(least=0, below=1), metavar='X')
    balance: float = setting(
        0.0, 'give examples of frequent classes of the batch less of a mixture; 0: all alike, 1: every class has as '
        'much of it on average', SHARE, metavar='X', more='λ ~ Dir(α₁ … α_B) '
        'with α_b ∝ n^−balance, n the number of the batch that are of its class. Where `m` is below the batch, this '
        'holds within each tuple. Not in the paper.')
    tuples: str = setting(
        'any', "what a mixture has: 'any' examples; those 'within' one class; or one of each class, 'across' them",
        TUPLES, more="Where `m` is given, at most m of these. The class of an example with soft targets is its "
        'largest. Not in the paper.')
    teacher: Optional[str] = setting(
        None, "a network whose predictions are a share of the targets, mixed and unmixed: 'ema', the averaged weights "
        "(--model-ema), or a trained one: hf-hub:…, local-dir:…, a folder, or a name of timm", metavar='NAME',
        more='Mixtures interpolate its predictions. In a loop of your own give the network itself, or `set_teacher`; '
        "the setting then is 'given'. Not given: none.")
    teacher_weight: float = setting(
        None, "the teacher's share of the targets; the labels have the rest", number(above=0, most=1), metavar='W',
        needs='teacher', usual=0.5)
    teacher_temperature: float = setting(
        None, "what the teacher's logits are divided by", number(above=0), metavar='T', needs='teacher', usual=1.0)
    teacher_start: Optional[float] = setting(
        None, 'the teacher has its share from this fraction of the training on; of a trained network the default is 0',
        number(least=0, below=1), metavar='R', needs='teacher', usual=0.5)
    teacher_start_epoch: Optional[float] = setting(
        None, 'the same in epochs', number(least=0), metavar='E', needs='teacher',
        more='Give this or `teacher_start`, not both.')
    teacher_reading: str = setting(
        None, "what the teacher says of a mixture: 'targets' its predictions of the examples, mixed; 'logits' its "
        'prediction of the mixture, the softmax of its mixed logits', READINGS, needs='teacher', usual='targets')
    teacher_at: str = setting(
        None, "what it predicts: the 'image', which every position inherits, or each 'position' for itself", TEACHES,
        modes=('dense',), needs='teacher', usual='image')
    teacher_view: str = setting(
        None, "the images that it sees: the 'same' as the network, or their mirror image, 'flip'", VIEWS,
        needs='teacher', usual='same', more='Not in the paper.')
    _given: frozenset[str] = field(default=frozenset(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        fields = {f.name: f.default for f in dataclasses.fields(self) if f.init}
        object.__setattr__(self, '_given', frozenset(name for name in fields if getattr(self, name) is not None))
        for name, default in fields.items():
            value = getattr(self, name)
            if value is not None or default is not None:
                object.__setattr__(self, name, _as_setting(name, value, SETTINGS[name]))
        self._check_given()
        for one, other in PAIRS:
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise SettingError(
                    f'{one} ({flag(one)}) is {getattr(self, one)!r} and {other} ({flag(other)}) is '
                    f'{getattr(self, other)!r}, but they are two ways of saying one thing: give only one.')
        preset = {name: about.usual for name, about in SETTINGS.items()
                  if about.usual is not None and (self.dense or about.modes != ('dense',))
                  and (not about.needs or getattr(self, about.needs) is not None)} | PRESETS[self.preset]
        if self.teacher not in (None, EMA):  # a trained network knows as much from the start
            preset['teacher_start'] = 0.0
        for fraction, epochs in PAIRS[1:]:
            if getattr(self, epochs) is not None:
                preset.pop(fraction, None)
        if self.attention != 'learned':
            preset.pop('attention_lr', None)
        if self.alpha is not None or self.effective is not None:  # either one replaces what the preset says
            preset.pop('alpha', None), preset.pop('effective', None)
        if self.attention in UNNORMALIZED:
            preset.pop('attention_norm', None)  # there is nothing to normalise
        if self.mixup or self.cutmix:  # whoever asks for one does not get the preset's other one with it
            preset.update(mixup=0.0, cutmix=0.0)
        for name, value in preset.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        self._check_together()

    def _check_given(self) -> None:
        if self.preset == 'regmixup' and self.mode == 'dense':
            raise _bad('preset', self.preset, 'it mixes images, which have no positions of features: choose --multimix '
                                              'multimix.')
        for name, about in SETTINGS.items():  # with plain MultiMix there are no positions, and it would be ignored
            if about.modes == ('dense',) and not self.dense and getattr(self, name) is not None:
                raise _bad(name, getattr(self, name), 'only --multimix dense has positions to weight: drop it, or '
                                                      'choose dense.')
            if about.needs and getattr(self, about.needs) is None and getattr(self, name) is not None:
                raise _bad(name, getattr(self, name), f'there is no {about.needs} ({flag(about.needs)}): give one, or '
                                                      f'drop it.')
        if self.attention in UNNORMALIZED and self.attention_norm is not None:
            what = 'is a softmax' if self.attention == 'learned' else 'has nothing to normalise'
            raise _bad('attention_norm', self.attention_norm, f'{self.attention} attention {what}: drop it.')
        if self.attention_lr is not None and self.attention != 'learned':
            raise _bad('attention_lr', self.attention_lr, 'only --multimix-attention learned is learned: drop it.')
        if self.attention == 'learned' and self.attention_detach is False:
            raise _bad('attention_detach', self.attention_detach, 'learned attention learns by a loss of its own and '
                                                                  'is a constant to all others: drop it.')
        if self.teacher is not None and (not isinstance(self.teacher, str) or not self.teacher):
            raise _bad('teacher', self.teacher, "it must be 'ema' or the name of a network: hf-hub:…, local-dir:…, a "
                                                "folder, or a name of timm.")

    def _check_layer(self) -> None:
        layers = self.layers
        if not layers or any(isinstance(x, bool) or not isinstance(x, (str, int)) or x == '' or
                             (isinstance(x, int) and x < 0) for x in layers):
            raise _bad('layer', self.layer, "it must be 'embedding', 'input', the number of a stage, the name of a "
                                            'module, or several of these.')
        if self.dense and layers != ('embedding',):
            raise _bad('layer', self.layer, 'only --multimix multimix mixes elsewhere than at the embedding; dense '
                                            'mixes what the classifier sees at every position.')
        object.__setattr__(self, 'layer', layers[0] if len(layers) == 1 else layers)

    def _check_n(self) -> None:
        if 'embedding' in self.layers:
            return
        if not self.given('n'):  # a preset's n is for embeddings, whose mixtures cost next to nothing
            object.__setattr__(self, 'n', 'batch')
        elif self.n != 'batch' and self.clean_weight == 0:
            raise _bad('n', self.n, f"with layer {self.layer!r} and clean_weight ({flag('clean_weight')}) 0 it must be "
                                    f"'batch', one mixture for each image. Or give a clean_weight above 0.")

    def _note_unmixed(self) -> None:
        """Warn of settings that say something of mixtures alone, where embeddings are never mixed."""
        for name, usual in (('balance', 0.0), ('tuples', 'any'), ('teacher_reading', 'targets'),
                            ('teacher_at', 'image'), ('attention', 'gap'), ('layer', 'embedding')):
            value = getattr(self, name)
            if self.prob == 0 and value not in (None, usual):
                warnings.warn(f'{name} ({flag(name)}) is {value!r}, but it has no effect: prob ({flag("prob")}) is 0, '
                              f'and embeddings are never mixed.', stacklevel=4)

    def _check_class_weight(self) -> None:
        if self.class_weight is None:
            return
        given = self.class_weight.tolist() if hasattr(self.class_weight, 'tolist') else self.class_weight
        if not isinstance(given, Sequence) or isinstance(given, str) or len(given) < 1:
            raise _bad('class_weight', given, 'it must be a number for each class.')
        weights = tuple(_as_number('class_weight', w, number()) for w in given)
        if min(weights) < 0 or max(weights) == 0:
            raise _bad('class_weight', weights, 'no weight may be negative, and one must be above 0.')
        if self.bce_loss:
            raise _bad('class_weight', weights, 'bce_loss (--bce-loss) compares every class for itself and has no '
                                                'weighted mean: give one of the two.')
        object.__setattr__(self, 'class_weight', weights)

    def _check_together(self) -> None:
        self._check_layer()
        if not self.bce_loss and (self.bce_sum or self.bce_target_thresh is not None):
            name = 'bce_sum' if self.bce_sum else 'bce_target_thresh'
            raise _bad(name, getattr(self, name), 'it says how to compute bce_loss (--bce-loss), which is off.')
        if self.gather and self.layers != ('embedding',):
            raise _bad('gather', self.gather, 'it gathers logits, so it goes with --multimix-layer embedding alone.')
        if self.keep_norm and self.layers != ('embedding',):
            raise _bad('keep_norm', self.keep_norm, 'it divides logits, so it goes with --multimix-layer embedding '
                                                    'alone.')
        if self.keep_norm and self.attention_detach is False:
            raise _bad('keep_norm', self.keep_norm, 'it takes the attention as a constant: leave attention_detach '
                                                    '(--multimix-attention-detach) on.')
        if self.teacher_reading == 'logits' and self.attention_detach is False:
            raise _bad('teacher_reading', self.teacher_reading, 'it takes the attention as a constant: leave '
                                                                'attention_detach (--multimix-attention-detach) on.')
        if self.teacher_at == 'position' and self.teacher not in (EMA, GIVEN):
            raise _bad('teacher_at', self.teacher_at, f"only teacher 'ema' is known to have this network's positions, "
                                                      f"not {self.teacher!r}: use 'image'.")
        if self.tuples == 'across' and self.balance:
            raise _bad('balance', self.balance, "tuples 'across' classes (--multimix-tuples) already have as much of "
                                                'every class: give one of the two.')
        if self.teacher_at == 'position' and self.teacher_view == 'flip':
            raise _bad('teacher_view', self.teacher_view, "positions would be mirrored too, so it goes with "
                                                          "teacher_at 'image' (--multimix-teacher-at) alone.")
        self._check_n()
        self._note_unmixed()
        if self.m is not None and self.given('effective') and self.effective[1] >= self.m:  # type: ignore[index]
            raise _bad('effective', self.effective, f'it must be below m, the {self.m} examples that are mixed.')
        self._check_class_weight()

    @property
    def layers(self) -> tuple[Layer, ...]:
        """`layer` as a tuple, however many there are."""
        several = isinstance(self.layer, Sequence) and not isinstance(self.layer, str)
        return tuple(self.layer) if several else (self.layer,)  # type: ignore[arg-type, return-value]

    @property
    def dense(self) -> bool:
        """Whether features are mixed at every position."""
        return self.mode == 'dense'

    def alpha_range(self, batch: int, m: Optional[int] = None) -> tuple[float, float]:
        """The range α is drawn from for a batch of this size; resolves `effective`. m: in place of `tuple_size`.

        Raises:
            SettingError: when `m` exceeds the batch.
        """
        m = self.tuple_size(batch) if m is None else m
        if self.alpha is not None:
            return self.alpha  # type: ignore[return-value]
        low, high = self.effective  # type: ignore[misc]
        if high >= m:  # too few examples, such as in a last batch: no more than the flat Dirichlet has
            low, high = min(low, (m + 1) / 2), min(high, (m + 1) / 2)
        if m == 1:
            return 1.0, 1.0
        return alpha_for_effective(low, m), alpha_for_effective(high, m)

    def mixtures(self, batch: int, layer: Layer = 'embedding') -> int:
        """n: how many mixtures a step makes at this layer, at each position, of a batch of this size."""
        elsewhere = layer != 'embedding' and 'embedding' in self.layers
        return batch if elsewhere or isinstance(self.n, str) else self.n

    def tuple_size(self, batch: int) -> int:
        """m: how many examples each tuple mixes, in a batch of this size."""
        if self.m is None:
            return batch
        if self.m > batch:
            raise _bad('m', self.m, f'a batch of {batch} has no {self.m} examples to mix: at most {batch}, or leave '
                                    f'it out for the whole batch.')
        return self.m

    def mixed_batch(self, batch: int, ranks: int = 1) -> int:
        """How many examples are there to mix, with batches of this size on so many ranks."""
        return batch * ranks if self.gather else batch

    def check_batch(self, batch: int, ranks: int = 1) -> None:
        """Raise `SettingError` unless every setting works with training batches of this size on so many ranks."""
        whole = self.mixed_batch(batch, ranks)
        self.tuple_size(whole)
        if whole == 1 and self.prob > 0:
            raise SettingError('--batch-size is 1, but one example cannot be mixed with others: it must be at least 2.')
        if self.gather and self.mixtures(whole) < ranks:
            raise _bad('n', self.n, f'{ranks} ranks share them out, so it must be at least {ranks}.')
        if self.given('effective') and self.effective[1] >= whole:  # type: ignore[index]
            raise _bad('effective', self.effective, f'a batch of {whole} cannot mix that many: it must be below '
                                                    f'{whole}.')
        for name in ('mixup', 'cutmix'):
            if getattr(self, name) and batch % 2:
                raise _bad(name, getattr(self, name), f"timm's Mixup pairs the batch with its reverse and needs an "
                                                      f'even batch size, not {batch} (--batch-size). The preset '
                                                      f"'embeddings' mixes no inputs.")

    def given(self, *names: str) -> bool:
        """Whether any of these settings was given, with another value than the preset's, which files repeat."""
        preset = PRESETS[self.preset]
        return any(name in self._given and getattr(self, name) != preset.get(name) for name in names)

    def differences(self) -> dict[str, Any]:
        """The settings that are not what the preset and the defaults say."""
        usual = type(self)(self.mode, preset=self.preset).to_dict()
        return {name: value for name, value in self.to_dict().items() if usual.get(name) != value}

    def replace(self, **changes: Any) -> MultiMixConfig:
        """A copy with some settings changed; everything given before stays given, the rest follows the preset anew.

        What is set to None falls back to the preset, and with it what says something of it: teacher=None drops
        teacher_weight.
        """
        given = {name: getattr(self, name) for name in self._given
                 if not SETTINGS[name].needs or changes.get(SETTINGS[name].needs, '') is not None}
        for pair in PAIRS:
            if changes.keys() & pair:
                given = {name: value for name, value in given.items() if name not in pair}
        return type(self).from_dict({**given, **changes})

    def to_dict(self) -> dict[str, Any]:
        """Resolved settings as plain values: what YAML and JSON can hold. `from_dict` takes it back."""
        return {name: list(v) if isinstance(v, tuple) else v
                for name in SETTINGS if (v := getattr(self, name)) is not None}

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> MultiMixConfig:
        """Build from a mapping; an unknown key is a `SettingError` with the nearest name."""
        for key in settings:
            if key not in SETTINGS:
                raise SettingError(f'{key!r} is not a setting of MultiMix.{nearest(str(key), SETTINGS)} '
                                   f'There are: {", ".join(SETTINGS)}.')
        return cls(**settings)


SETTINGS: dict[str, Setting] = {f.name: f.metadata['setting'] for f in dataclasses.fields(MultiMixConfig) if f.init}


def _args() -> str:
    """The settings as a docstring lists them."""
    lines = ['    Args:']
    for name, about in SETTINGS.items():
        lines += textwrap.wrap(f'{name}: {about.text}. {about.more}', 116, initial_indent=' ' * 8,
                               subsequent_indent=' ' * 12)
    return '\n'.join(lines)


if MultiMixConfig.__doc__:  # not with python -OO
    MultiMixConfig.__doc__ = MultiMixConfig.__doc__.replace('    Raises:', f'{_args()}\n\n    Raises:')

# The methods' names, by `mode`.
METHODS = {'multimix': 'MultiMix', 'dense': 'Dense MultiMix'}


def setting_text(name: str, value: Any) -> str:
    """The value of a setting for people, as short as it can be."""
    if name == 'class_weight':
        return f'{len(value)} weights'
    if isinstance(value, (list, tuple)):  # layers, of which one is drawn; or the ends of a range, often the same
        return (' or ' if name == 'layer' else ' to ').join(dict.fromkeys(setting_text('', v) for v in value))
    return f'{value:g}' if isinstance(value, float) else str(value)
