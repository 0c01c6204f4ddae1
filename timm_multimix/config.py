"""Every setting of the method: its default, its meaning and its checks."""
from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, Union

from .errors import SettingError, nearest

Range = Union[float, tuple[float, float]]
Layer = Union[str, int]

MODES = ('multimix', 'dense')
ATTENTIONS = ('gap', 'cam', 'uniform', 'self')
ATTENTION_NORMS = ('l1_relu', 'softmax')
ENGINES = ('auto', 'torch', 'triton')
NORMALIZATIONS = ('position', 'all')

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
ALIASES = {'alone': 'embeddings'}  # what `embeddings` was called

# Only dense has positions to attend to; with plain MultiMix these would be ignored, so giving them is an error.
_DENSE_ONLY = dict(attention='gap', attention_norm='l1_relu', attention_detach=True, normalize='position')


PAIRS = (('alpha', 'effective'), ('ramp', 'ramp_epochs'))  # two ways of saying one thing each

# Settings that are flags of timm's too, and keep their names.
TIMMS = ('mixup', 'cutmix', 'bce_loss', 'bce_sum', 'bce_target_thresh')


def flag(name: str) -> str:
    """The command-line flag of a setting, for error messages."""
    named = {'label_smoothing': '--smoothing', 'mode': '--multimix', 'class_weight': '--class-weight'}
    return named.get(name, ('--' if name in TIMMS else '--multimix-') + name.replace('_', '-'))


def _bad(name: str, value: Any, right: str) -> SettingError:
    return SettingError(f'{name} ({flag(name)}) is {value!r}, but {right}')


def _as_number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _bad(name, value, 'it must be a finite number.')
    return float(value)


def _as_range(name: str, value: Any) -> tuple[float, float]:
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if len(values) not in (1, 2):
        raise _bad(name, value, 'it must be one number, or two: the ends of a range.')
    low, high = _as_number(name, values[0]), _as_number(name, values[-1])
    if low > high:
        raise _bad(name, value, f'a range starts with its smaller end: {high:g} {low:g}.')
    return low, high


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

    Args:
        mode: 'multimix' mixes the pooled embeddings of the mini-batch, 'dense' its features at every position.
        preset: 'default' mixes embeddings on one step of four, and inputs, by mixup or CutMix, on the others, both on
            a share of the steps that grows over the first half of the training; 'embeddings' mixes embeddings on every
            step and no inputs; 'paper' is the published setting (arXiv 2311.05538). Two are other methods: 'manifold'
            mixes pairs of embeddings (arXiv 1806.05236, at the last layer), 'regmixup' pairs of images beside the
            clean ones (arXiv 2206.14502). 'alone' is an older name of 'embeddings'.
        n: mixed examples (tuples) per step; for dense, per step and position. 'batch' is as many as the batch has.
        m: examples mixed in each tuple, drawn at random from the batch; None means the whole batch.
        alpha: concentration of the symmetric Dirichlet that draws the mixing weights; a number, or a (low, high)
            range from which one is drawn each step.
        effective: the same said as an effective number of examples, 1/Σλ², whatever the batch size: 2 is about a pair.
            A number or a range. Give this or `alpha`, not both. (1 / mean Σλ² is meant; the mean of 1/Σλ² that a run
            reports is somewhat above.)
        prob: probability, per step, of mixing embeddings. The other steps mix inputs if `mixup` or `cutmix` is above 0,
            and train plainly if not.
        ramp: the share of the steps that mix anything, embeddings or inputs, grows from none to all over this fraction
            of the training, 0 to 1; the others train plainly. An image that was seen a few times is not memorised yet,
            and mixing then costs more than it gives. 0 mixes from the start. A loop of your own says how far it is
            (`MultiMixModel.set_progress`); `train.py` does so.
        ramp_epochs: the same in epochs, whatever the length of the training. Give this or `ramp`, not both.
        mixup: α of the input mixup that takes the steps `prob` leaves (timm's Mixup; 0 is none). With prob = 1 it
            comes before embedding mixing on every step.
        cutmix: the same for CutMix; with both, each step that has one draws which.
        clean_weight: weight of the ordinary cross-entropy of the unmixed batch beside the mixed term, whose weight is
            1. The loss is their weighted mean, so gradients stay as large as those of ordinary training.
        attention: dense only: what u is in a = h(zᵀu). 'gap' the image's own mean feature, 'cam' the classifier's row
            of its class, 'uniform' no attention. 'self' instead takes a from the network: what a patch token receives
            on average in the last self-attention, for transformers.
        attention_norm: dense only: h, 'l1_relu' or 'softmax'.
        attention_detach: dense only: True (default) takes the attention as a constant. The maps are a confidence in
            the labels; if the loss could lower itself by moving them it would learn to look where loss is small.
        normalize: dense only: 'position' divides each position's weighted sum by that position's own total weight and
            averages over positions; 'all' divides by the total over all positions.
        layer: multimix only: what is mixed. 'embedding' (default), 'input', the number of a stage as timm's
            `out_indices` count them, the name of a module, whose output it is, or several of these, of which one is
            drawn each step. All but 'embedding' mix to as many examples as the batch has, whatever `n`, and send
            them through the rest of the network, beside the unmixed ones if `clean_weight` is not 0.
        engine: what computes the loss: 'auto' is Triton on CUDA where it can and plain torch elsewhere; 'torch' and
            'triton' insist. The loss is the same.
        gather: in a distributed run, mix the batch of all ranks instead of each rank's own: `m`, `effective` and the
            whole batch then mean that of all, and the `n` mixtures are shared out over the ranks. Logits, targets and
            attention travel; the gradient is that of a single process with the whole batch. Every rank needs a batch
            of the same size. Alone it does nothing.
        label_smoothing: smoothing of class-index targets. Soft targets are taken as they are (timm's Mixup smooths
            its own), so smoothing is never applied twice.
        class_weight: a weight for each class, as in `torch.nn.functional.cross_entropy`: the loss of clean, mixed and
            plain steps alike is the mean weighted by the class, for mixtures by the mixed target. None is 1 for all.
        keep_norm: divide the logits of a mixture by ‖λ‖₂, so that the mean of unlike embeddings counts as if it were as
            long as they are: less overconfident. Not in the paper.
        bce_loss: binary cross-entropy of every class for itself, in the mixed and the clean term; a mixture's target
            is then a probability for each class.
        bce_sum: with `bce_loss`, its sum over the classes instead of the mean.
        bce_target_thresh: with `bce_loss`, targets above it become 1 and others 0, before embeddings are mixed (after
            input mixing).

    Raises:
        SettingError: naming the setting, its value, and what would be right.
    """

    mode: str = 'dense'
    preset: str = 'default'
    n: Union[int, str] = None  # type: ignore[assignment]  # from the preset
    m: Optional[int] = None
    alpha: Optional[Range] = None
    effective: Optional[Range] = None
    prob: float = None  # type: ignore[assignment]
    ramp: Optional[float] = None
    ramp_epochs: Optional[float] = None
    mixup: float = None  # type: ignore[assignment]
    cutmix: float = None  # type: ignore[assignment]
    clean_weight: float = None  # type: ignore[assignment]
    attention: str = None  # type: ignore[assignment]
    attention_norm: str = None  # type: ignore[assignment]
    attention_detach: bool = None  # type: ignore[assignment]
    normalize: str = None  # type: ignore[assignment]
    layer: Union[Layer, Sequence[Layer]] = None  # type: ignore[assignment]
    engine: str = 'auto'
    gather: bool = False
    label_smoothing: float = 0.0
    class_weight: Optional[Sequence[float]] = None
    keep_norm: bool = False
    bce_loss: bool = False
    bce_sum: bool = False
    bce_target_thresh: Optional[float] = None
    _given: frozenset[str] = field(default=frozenset(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, 'preset', ALIASES.get(self.preset, self.preset))
        for name, value, choices in (
                ('mode', self.mode, MODES), ('preset', self.preset, tuple(PRESETS)), ('engine', self.engine, ENGINES)):
            if value not in choices:
                raise _bad(name, value, f'it must be one of {", ".join(choices)}.{nearest(str(value), choices)}')
        object.__setattr__(self, '_given', frozenset(
            f.name for f in dataclasses.fields(self) if f.init and getattr(self, f.name) is not None))
        self._check_given()
        if self.alpha is not None and self.effective is not None:
            raise SettingError(
                f'alpha (--multimix-alpha) is {self.alpha!r} and effective (--multimix-effective) is '
                f'{self.effective!r}, but they are two ways of saying one thing: give only one.')
        if self.ramp is not None and self.ramp_epochs is not None:
            raise SettingError(
                f'ramp (--multimix-ramp) is {self.ramp!r} and ramp_epochs (--multimix-ramp-epochs) is '
                f'{self.ramp_epochs!r}, but they are two ways of saying one thing: give only one.')
        preset = {'layer': 'embedding', **PRESETS[self.preset]}
        if self.ramp_epochs is not None:
            preset.pop('ramp')
        if self.alpha is not None or self.effective is not None:  # either one replaces what the preset says
            preset.pop('alpha', None), preset.pop('effective', None)
        if self.mode == 'dense':
            preset.update(_DENSE_ONLY)
        if self.attention in ('uniform', 'self'):
            preset.pop('attention_norm', None)  # there is nothing to normalise
        for name, value in preset.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        self._check_values()

    def _check_given(self) -> None:
        if self.preset == 'regmixup' and self.mode == 'dense':
            raise _bad('preset', self.preset, 'it mixes images, which have no positions of features: choose --multimix '
                                              'multimix.')
        if self.mode != 'dense':
            for name in _DENSE_ONLY:
                if getattr(self, name) is not None:
                    raise _bad(name, getattr(self, name), 'only --multimix dense has positions to weight: drop it, '
                                                          'or choose dense.')
        for name, choices in (
                ('attention', ATTENTIONS), ('attention_norm', ATTENTION_NORMS), ('normalize', NORMALIZATIONS)):
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise _bad(name, value, f'it must be one of {", ".join(choices)}.{nearest(str(value), choices)}')
        if self.attention in ('uniform', 'self') and self.attention_norm is not None:
            raise _bad('attention_norm', self.attention_norm, f'{self.attention} attention has nothing to normalise: '
                                                              f'drop it.')

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

    def _check_sizes(self) -> None:
        for name, word in (('n', 'batch'), ('m', None)):
            value = getattr(self, name)
            if value != word and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise _bad(name, value, 'it must be a whole number of at least 1'
                                        + (", or 'batch' for as many as the batch has." if word else '.'))
        if 'embedding' not in self.layers and self.n != 'batch':
            if self.given('n'):
                warnings.warn(f'n ({flag("n")}) is {self.n}, but it has no effect: with layer {self.layer!r} there are '
                              f'as many mixtures as the batch has images.', stacklevel=4)
            object.__setattr__(self, 'n', 'batch')

    def _check_class_weight(self) -> None:
        if self.class_weight is None:
            return
        given = self.class_weight.tolist() if hasattr(self.class_weight, 'tolist') else self.class_weight
        if not isinstance(given, Sequence) or isinstance(given, str) or len(given) < 1:
            raise _bad('class_weight', given, 'it must be a number for each class.')
        weights = tuple(_as_number('class_weight', w) for w in given)
        if min(weights) < 0 or max(weights) == 0:
            raise _bad('class_weight', weights, 'no weight may be negative, and one must be above 0.')
        if self.bce_loss:
            raise _bad('class_weight', weights, 'bce_loss (--bce-loss) compares every class for itself and has no '
                                                'weighted mean: give one of the two.')
        object.__setattr__(self, 'class_weight', weights)

    def _check_values(self) -> None:
        self._check_layer()
        for name in ('gather', 'keep_norm', 'bce_loss', 'bce_sum', 'attention_detach'):
            if not isinstance(getattr(self, name), bool) and getattr(self, name) is not None:
                raise _bad(name, getattr(self, name), 'it is True or False.')
        if not self.bce_loss and (self.bce_sum or self.bce_target_thresh is not None):
            name = 'bce_sum' if self.bce_sum else 'bce_target_thresh'
            raise _bad(name, getattr(self, name), 'it says how to compute bce_loss (--bce-loss), which is off.')
        if self.bce_target_thresh is not None and not 0 <= _as_number('bce_target_thresh', self.bce_target_thresh) < 1:
            raise _bad('bce_target_thresh', self.bce_target_thresh, 'it must be from 0 up to, not including, 1.')
        if self.gather and self.layers != ('embedding',):
            raise _bad('gather', self.gather, 'it gathers logits, so it goes with --multimix-layer embedding alone.')
        if self.keep_norm and self.layers != ('embedding',):
            raise _bad('keep_norm', self.keep_norm, 'it divides logits, so it goes with --multimix-layer embedding '
                                                    'alone.')
        if self.keep_norm and self.attention_detach is False:
            raise _bad('keep_norm', self.keep_norm, 'it takes the attention as a constant: leave attention_detach '
                                                    '(--multimix-attention-detach) on.')
        self._check_sizes()
        for name in ('alpha', 'effective'):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _as_range(name, getattr(self, name)))
        if self.alpha is not None and self.alpha[0] <= 0:  # type: ignore[index]
            raise _bad('alpha', self.alpha, 'a Dirichlet concentration must be above 0 (the paper draws it from '
                                            '0.5 to 2).')
        if self.effective is not None:
            low, high = self.effective  # type: ignore[misc]
            if low <= 1:
                raise _bad('effective', self.effective, 'it must be above 1: one effective example is no mixing.')
            if self.m is not None and high >= self.m and 'effective' in self._given:
                raise _bad('effective', self.effective, f'it must be below m, the {self.m} examples that are mixed.')
        for name, low, high, right in (
                ('prob', 0, 1, 'it is a probability: from 0 to 1.'),
                ('ramp', 0, 1, 'it is a fraction of the training: from 0 (mixes from the start) to 1.'),
                ('ramp_epochs', 0, math.inf, 'a number of epochs cannot be negative (0 mixes from the start).'),
                ('mixup', 0, math.inf, 'a Beta concentration cannot be negative (0 switches input mixup off).'),
                ('cutmix', 0, math.inf, 'a Beta concentration cannot be negative (0 switches CutMix off).'),
                ('clean_weight', 0, math.inf, 'a weight cannot be negative.'),
                ('label_smoothing', 0, 1, 'it must be from 0 up to, not including, 1.')):
            if getattr(self, name) is None:  # ramp or ramp_epochs
                continue
            value = _as_number(name, getattr(self, name))
            if not low <= value <= high or (name == 'label_smoothing' and value == 1):
                raise _bad(name, value, right)
            object.__setattr__(self, name, value)
        self._check_class_weight()

    @property
    def layers(self) -> tuple[Layer, ...]:
        """`layer` as a tuple, however many there are."""
        return (self.layer,) if isinstance(self.layer, (str, int)) else tuple(self.layer)

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

    def mixtures(self, batch: int) -> int:
        """n: how many mixtures a step makes, at each position, of a batch of this size."""
        return batch if isinstance(self.n, str) else self.n

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
        if 'effective' in self._given and self.effective[1] >= whole:  # type: ignore[index]
            raise _bad('effective', self.effective, f'a batch of {whole} cannot mix that many: it must be below '
                                                    f'{whole}.')
        for name in ('mixup', 'cutmix'):
            if getattr(self, name) and batch % 2:
                raise _bad(name, getattr(self, name), f"timm's Mixup pairs the batch with its reverse and needs an "
                                                      f'even batch size, not {batch} (--batch-size). The preset '
                                                      f"'embeddings' mixes no inputs.")

    def given(self, *names: str) -> bool:
        """Whether any of these settings was given, and is another than the preset's (which files repeat)."""
        preset = PRESETS[self.preset]
        return any(name in self._given and getattr(self, name) != preset.get(name) for name in names)

    def differences(self) -> dict[str, Any]:
        """The settings that are not what the preset and the defaults say."""
        usual = type(self)(self.mode, preset=self.preset).to_dict()
        return {name: value for name, value in self.to_dict().items() if usual.get(name) != value}

    def replace(self, **changes: Any) -> MultiMixConfig:
        """A copy with some settings changed; everything given before stays given, the rest follows the preset anew."""
        given = {name: getattr(self, name) for name in self._given}
        for pair in PAIRS:
            if changes.keys() & pair:
                given = {name: value for name, value in given.items() if name not in pair}
        return type(self).from_dict({**given, **changes})

    def to_dict(self) -> dict[str, Any]:
        """Resolved settings as plain values: what YAML and JSON can hold. `from_dict` takes it back."""
        return {
            f.name: list(v) if isinstance(v, tuple) else v
            for f in dataclasses.fields(self) if f.init and (v := getattr(self, f.name)) is not None}

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> MultiMixConfig:
        """Build from a mapping; an unknown key is a `SettingError` with the nearest name."""
        names = [f.name for f in dataclasses.fields(cls) if f.init]
        for key in settings:
            if key not in names:
                raise SettingError(f'{key!r} is not a setting of MultiMix.{nearest(key, names)} '
                                   f'There are: {", ".join(names)}.')
        return cls(**settings)


# The methods' names, by `mode`.
METHODS = {'multimix': 'MultiMix', 'dense': 'Dense MultiMix'}


def setting_text(name: str, value: Any) -> str:
    """The value of a setting for people, as short as it can be."""
    if name == 'class_weight':
        return f'{len(value)} weights'
    if isinstance(value, (list, tuple)):  # layers, of which one is drawn; or the ends of a range, often the same
        return (' or ' if name == 'layer' else ' to ').join(dict.fromkeys(setting_text('', v) for v in value))
    return f'{value:g}' if isinstance(value, float) else str(value)
