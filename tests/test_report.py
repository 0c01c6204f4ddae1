"""What a run says before it starts, after each epoch and at its end, and that it says what happened."""
from __future__ import annotations

import math
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, Optional

import pytest
import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image
from timm.data import Mixup

from tests.conftest import ROOT
from timm_multimix import MultiMixConfig, SettingError
from timm_multimix.config import PRESET_WORDS, PRESETS
from timm_multimix.mixing import expected_signal
from timm_multimix.policy import FEW, MixingPolicy
from timm_multimix.runs.settings import parse_args
from timm_multimix.runs.summary import read_summary, write_summary
from timm_multimix.training.build import ema_note
from timm_multimix.training.curves import draw_curves, plot_curves
from timm_multimix.training.report import write_report
from timm_multimix.training.words import (
    epoch_line,
    expected_line,
    few_warning,
    headline,
    in_plain_timm,
    left_over,
    mixing_line,
)

OLD = ROOT / 'checkpoints' / 'test_efficientnet_digits' / 'summary.csv'  # as version 0.1.0 wrote it


# ------------------------------------------------------------------------------------------------------ before training

@pytest.mark.parametrize('mode, preset', [(m, p) for m in ('dense', 'multimix') for p in PRESETS
                                          if (m, p) != ('dense', 'regmixup')])
def test_a_preset_in_one_line(mode: str, preset: str) -> None:
    config = MultiMixConfig(mode, preset=preset)
    line = mixing_line(config, 128, 10)
    assert '\n' not in line and len(line) <= 210
    assert f'preset {preset} ({PRESET_WORDS[preset]})' in line and 'changed' not in line
    assert (' position' in line) == (mode == 'dense')
    effective = expected_signal(config, 128, 10)['effective']
    assert f'{config.mixtures(128)} mixtures a step' in line and f'about {effective:.1f} effective' in line


def test_what_an_epoch_leaves_out() -> None:
    assert 'leaves out 16 of 36 training images' in (left_over(36, 1, 20) or '')
    for images, batches, batch_size in ((36, 4, 8), (40, 2, 20), (36, 3, 20)):  # the last: augmented more than once
        assert left_over(images, batches, batch_size) is None


def test_what_differs_from_the_preset() -> None:
    config = MultiMixConfig('dense', n=500, attention='cam', effective=(2, 2), mixup=0.4, label_smoothing=0.1,
                            class_weight=[1.0] * 1000, engine='torch')
    line = mixing_line(config, 64, 1000)
    assert '500 mixtures a step and position' in line
    assert line.endswith('; changed: n=500, effective=2, mixup=0.4, cutmix=0, attention=cam, label_smoothing=0.1, '
                         'class_weight=1000 weights.')
    line = mixing_line(MultiMixConfig('multimix', layer=['input', 2], alpha=(0.5, 2)), 64, 10)
    assert line.endswith('; changed: n=batch, alpha=0.5 to 2, layer=input or 2.') and '64 mixtures a step' in line
    assert 'embeddings are never mixed; changed: prob=0.' in mixing_line(MultiMixConfig('dense', prob=0), 64, 10)
    assert mixing_line(None, 64, 10) == 'MultiMix: none.'
    assert mixing_line(None, 64, 10, 0.1) == 'MultiMix: none. Labels are smoothed, --smoothing 0.1.'
    with pytest.raises(SettingError, match='m .*is 100'):
        mixing_line(MultiMixConfig('dense', m=100), 64, 10)


def promised(line: str) -> dict[str, int]:
    numbers = re.match(r'Of ([\d ]+) steps about (.*)\.', line.partition('. ')[0].rstrip('.') + '.')
    assert numbers
    found = {name: int(n.replace(' ', '')) for n, name in
             re.findall(r'([\d ]+?) (?:will mix )?(embeddings|inputs|nothing)', numbers[2])}
    return {'steps': int(numbers[1].replace(' ', '')), **found}


@pytest.mark.parametrize('settings, input_epochs', [
    ({}, None), ({}, 4), ({'ramp_epochs': 30}, None), ({'preset': 'paper'}, None), ({'prob': 1.0}, 5),
    ({'prob': 0.3, 'ramp': 1.0, 'cutmix': 0, 'mixup': 0}, None)])
def test_the_numbers_before_training_are_those_after_it(settings: dict[str, Any], input_epochs: Optional[int]) -> None:
    epochs, batches = 10, 300
    policy = MixingPolicy(MultiMixConfig('dense', **settings), 4)
    line = expected_line(policy, epochs * batches, epochs, input_epochs)
    assert line is not None and line.startswith('Of 3 000 steps about ') and ' will mix embeddings' in line
    assert policy.progress is None and not policy.counts  # it only asked
    images, target = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    for epoch in range(epochs):
        if policy.mixup_fn is not None and input_epochs is not None and epoch >= input_epochs:
            policy.mixup_fn.mixup_enabled = False  # type: ignore[attr-defined]
        for i in range(batches):
            policy.set_progress(epoch + i / batches, epochs)
            policy.begin(images, target)
    numbers = promised(line)
    assert ('inputs' in numbers) == (policy.mixup_fn is not None)
    for name, n in numbers.items():  # five standard deviations of a coin
        assert abs(policy.counts[name] - n) <= 5 * (3000 * 0.25) ** 0.5 * (name != 'steps'), (name, line, policy.counts)


@pytest.mark.parametrize('settings, words', [
    ({}, 'The share that mixes grows over the first half of the training (--multimix-ramp 0.5).'),
    ({'ramp': 1}, 'The share that mixes grows over the training (--multimix-ramp 1).'),
    ({'ramp': 0.3}, 'The share that mixes grows over the first 30 % of the training (--multimix-ramp 0.3).'),
    ({'ramp_epochs': 4}, 'The share that mixes grows over the first 4 epochs (--multimix-ramp-epochs 4).'),
    ({'ramp_epochs': 100}, 'The share that mixes grows over the first 100 epochs (--multimix-ramp-epochs 100), and '
                           'this training has 12.'),
])
def test_the_ramp_in_words(settings: dict[str, Any], words: str) -> None:
    line = expected_line(MixingPolicy(MultiMixConfig('dense', **settings), 4), 100, 12)
    assert line is not None and line.endswith(f' nothing. {words}')


def test_what_there_is_to_tell_before_training() -> None:
    assert expected_line(MixingPolicy(MultiMixConfig('dense'), 10), 1170, 12) == (
        'Of 1 170 steps about 219 will mix embeddings, 658 inputs, and 293 nothing. The share that mixes grows over '
        'the first half of the training (--multimix-ramp 0.5).')
    assert expected_line(MixingPolicy(None, 10), 1170, 12) is None
    assert expected_line(MixingPolicy(MultiMixConfig('dense', prob=0, mixup=0, cutmix=0), 10), 1170, 12) is None
    assert expected_line(MixingPolicy(MultiMixConfig('dense'), 10), 0, 0) is None  # no epochs: nothing to divide by
    plain = MixingPolicy(None, 10, mixup_fn=Mixup(num_classes=10))
    assert expected_line(plain, 36, 3) == 'Of 36 steps about 36 will mix inputs and 0 nothing.'
    assert expected_line(plain, 36, 3, 1) == 'Of 36 steps about 12 will mix inputs and 24 nothing.'
    always = MixingPolicy(MultiMixConfig('dense', preset='embeddings'), 10)
    assert expected_line(always, 36, 3) == 'Of 36 steps about 36 will mix embeddings and 0 nothing.'
    own = MixingPolicy(MultiMixConfig('dense'), 10, schedule=lambda p: 0.5)  # in the place of the preset's ramp
    assert expected_line(own, 80, 3) == 'Of 80 steps about 10 will mix embeddings, 30 inputs, and 40 nothing.'


@pytest.mark.parametrize('settings, words', [
    ({'ramp_epochs': 100}, 'about 4 of 1 170 steps will mix embeddings, so this run will hardly differ from one that '
     'mixes none: ramp_epochs (--multimix-ramp-epochs) is 100, and the training has 3 epochs. Give --multimix-ramp 0.5 '
     '(ramp=0.5), which grows over half of the training however long it is.'),
    ({'prob': 0.03}, 'about 26 of 1 170 steps .*: prob (--multimix-prob) is 0.03. Give --multimix-prob 0.25 '
                     '(prob=0.25).'),
    ({'prob': 0.02, 'ramp_epochs': 4e3}, 'fewer than 1 of 1 170 steps .*: ramp_epochs .* is 4000, .*; and prob .* is '
                                         '0.02. Give --multimix-ramp 0.5 .*; and --multimix-prob 0.25 (prob=0.25).'),
    ({'prob': 0.0999, 'ramp': 1.0}, ': prob (--multimix-prob) is 0.0999. Give --multimix-prob 0.25'),
    ({'prob': 0.1005, 'ramp_epochs': 3.04}, ': prob (--multimix-prob) is 0.1005. Give --multimix-prob 0.25'),
])
def test_few_mixed_embeddings_are_warned_of(settings: dict[str, Any], words: str) -> None:
    config = MultiMixConfig('dense', **settings)
    warning = few_warning(MixingPolicy(config, 10), 1170, 3)
    assert warning is not None
    assert re.search(re.escape(words).replace(r'\.\*', '.*'), warning), warning
    # Who does what it says to do instead is not warned again.
    advice = {name: float(value) for name, value in re.findall(r'\((\w+)=([\d.]+)\)', warning)}
    better = MixingPolicy(config.replace(**advice), 10)
    assert few_warning(better, 1170, 3) is None and better.expected(3)['embeddings'] >= FEW


def test_who_is_not_warned() -> None:
    for preset in PRESETS:
        policy = MixingPolicy(MultiMixConfig('multimix', preset=preset), 10)
        assert few_warning(policy, 12, 1) is None
    assert few_warning(MixingPolicy(MultiMixConfig('dense', prob=0), 10), 1170, 3) is None  # was not asked for
    assert few_warning(MixingPolicy(MultiMixConfig('dense', prob=FEW + 0.001, ramp=0), 10), 1170, 3) is None
    assert few_warning(MixingPolicy(None, 10, mixup_fn=Mixup(num_classes=10)), 1170, 3) is None
    warning = few_warning(MixingPolicy(MultiMixConfig('dense'), 10, schedule=lambda p: 0.01), 1170, 3)
    assert warning is not None and 'its schedule lets 1.0% of the steps mix' in warning and 'ramp' not in warning


# ------------------------------------------------------------------------------------------------- while it is training

FOUND = {'loss': 1.2344, 'top1': 70.0, 'top1_unmixed': 98.11, 'top1_mixed': 62.29, 'loss_mixed': 1.0, 'loss_clean': 0.1,
         'effective': 2.1, 'target_entropy': 0.3, 'steps': 36, 'mixed_embeddings': 9, 'mixed_inputs': 27, 'unmixed': 0,
         'skipped': 0, 'images_per_second': 1200.4}
EVALUATED = {'loss': 0.5123, 'top1': 97.18, 'top5': 99.9}
PLAIN = {'loss': 1.2344, 'top1': 98.11, 'skipped': 0, 'images_per_second': 1200.4}


@pytest.mark.parametrize('found, evaluated, words', [
    (FOUND, EVALUATED, 'train loss 1.234, top-1 98.1 % (62.3 % if mixed); val loss 0.512, top-1 97.18 %; 1200 '
                       'img/s, 0:03:30 left'),
    (FOUND, {**EVALUATED, 'raw_loss': 0.6, 'raw_top1': 96.0}, 'val loss 0.512, top-1 97.18 % (raw 96.00); 1200'),
    (FOUND, {}, 'top-1 98.1 % (62.3 % if mixed); 1200'),
    ({**FOUND, 'top1_unmixed': None}, {}, 'train loss 1.234, top-1 62.3 % (mixed images); 1200'),
    ({**FOUND, 'top1_mixed': None, 'mixed_inputs': 0}, {}, 'top-1 98.1 %; 1200'),
    ({**PLAIN, 'top1_unmixed': None, 'top1_mixed': 50.0, 'steps': 36, 'mixed_embeddings': 0, 'mixed_inputs': 36,
      'unmixed': 0}, {}, 'top-1 50.0 % (mixed images); 1200'),
    (PLAIN, EVALUATED, 'train loss 1.234, top-1 98.1 %; val loss 0.512, top-1 97.18 %; 1200 img/s, 0:03:30 left'),
    ({**PLAIN, 'loss': None, 'top1': None, 'skipped': 3}, {},
     'train loss nan; 3 updates without a finite gradient left out; 1200 img/s'),
    ({**PLAIN, 'images_per_second': None}, {}, 'top-1 98.1 %; 0:03:30 left'),  # stopped behind the last batch
])
def test_an_epoch_in_a_line(found: dict[str, Any], evaluated: dict[str, Any], words: str) -> None:
    line = epoch_line(2, 12, 0, found, evaluated, 70)
    assert line.startswith('Epoch  3/12: train loss ') and words in line
    assert 'None' not in line and '\n' not in line and len(line) <= 140


def test_the_time_of_a_line() -> None:
    assert epoch_line(11, 12, 0, FOUND, EVALUATED, 70).endswith(' img/s, 0:01:10')  # nothing is left
    assert epoch_line(5, 8, 4, FOUND, EVALUATED, 70).endswith(' img/s, 0:01:10 left')  # of a resumed run: 2 done of 4


# -------------------------------------------------------------------------------------------------------------- curves

def rows(kind: str, epochs: int = 12) -> list[dict[str, Any]]:
    """As train.py appends them: numbers that fall and rise, and None where an epoch had no value."""
    found: list[dict[str, Any]] = []
    for e in range(epochs):
        grown = min(1.0, 2 * e / epochs)
        embeddings = round(9 * grown) if kind == 'dense' else 0
        inputs = round((27 if kind == 'dense' else 36) * grown)
        row: dict[str, Any] = {'epoch': e, 'train_loss': 3 / (1 + e), 'train_top1': 40.0 + e}
        if kind != 'plain':
            row.update(train_top1_unmixed=60.0 + e, train_top1_mixed=30.0 + e if inputs else None)
        if kind == 'dense':
            row.update(train_loss_mixed=2.5 if embeddings else None, train_loss_clean=1 / (1 + e),
                       train_effective=2.25 if embeddings else None, train_target_entropy=0.375 if embeddings else None)
        if kind != 'plain':
            row.update(train_steps=36, train_mixed_embeddings=embeddings, train_mixed_inputs=inputs,
                       train_unmixed=36 - embeddings - inputs)
        found.append({**row, 'train_skipped': 0, 'train_images_per_second': 1000.0, 'eval_loss': 2 / (1 + e),
                      'eval_top1': 75.5 + e, 'eval_top5': 99.0, 'lr': 0.1})
    return found


def write(path: Path, kind: str, epochs: int = 12) -> Path:
    write_summary(path, rows(kind, epochs))
    return path


def labels(figure: Figure) -> dict[str, list[str]]:
    return {axis.get_title(): [line.get_label() for line in axis.get_lines()] for axis in figure.axes
            if axis.get_title()}


TRAIN_AND_VALIDATION = ['train, unmixed images', 'train, mixed images', 'validation']
STEPS = ['embeddings (MultiMix)', 'images (mixup or CutMix)', 'nothing']


def test_curves_say_what_they_are(tmp_path: Path) -> None:
    figure = draw_curves(read_summary(write(tmp_path / 'plain.csv', 'plain')))
    assert labels(figure) == {'Loss': ['train loss', 'validation loss'],
                              'Top-1 accuracy, % (validation, last: 86.50)': ['train', 'validation']}
    figure = draw_curves(read_summary(write(tmp_path / 'inputs.csv', 'inputs')))
    assert labels(figure) == {
        'Loss': ['train loss, all steps', 'validation loss'],
        'Top-1 accuracy, % (validation, last: 86.50)': TRAIN_AND_VALIDATION, 'What the steps mixed': STEPS}
    figure = draw_curves(read_summary(write(tmp_path / 'dense.csv', 'dense')))
    assert labels(figure) == {
        'Loss': ['train loss, all steps', 'train loss, mixed embeddings', 'train loss, unmixed', 'validation loss'],
        'Top-1 accuracy, % (validation, last: 86.50)': TRAIN_AND_VALIDATION, 'What the steps mixed': STEPS,
        'How strong the mixing of embeddings is': ['effective examples']}
    for axis in figure.axes[:3]:
        assert [text.get_text() for text in axis.get_legend().get_texts()] == [x.get_label() for x in axis.get_lines()]
    mixed = {line.get_label(): line.get_ydata() for line in figure.axes[2].get_lines()}
    assert [mixed[name][-1] for name in STEPS] == [25, 75, 0] and mixed['nothing'][0] == 100
    assert figure.axes[2].get_ylabel() == "% of an epoch's steps"
    strength, information = figure.axes[3:]
    assert strength.get_ylabel() == 'examples in a mixture,\neffective number (1: unmixed)'
    assert strength.get_lines()[0].get_ydata()[-1] == 2.25
    assert information.get_ylabel() == 'class information in its target,\n% (0: none is left)'
    assert information.get_lines()[0].get_ydata()[-1] == 62.5  # of a target entropy of 0.375 of the batch's


def test_curves_of_a_run(tmp_path: Path) -> None:
    summary = write(tmp_path / 'summary.csv', 'dense')
    assert plot_curves(summary, tmp_path / 'curves.png', 'resnet50') == tmp_path / 'curves.png'
    with Image.open(tmp_path / 'curves.png') as picture:
        picture.load()
        assert picture.format == 'PNG' and picture.width > 1000
    assert plot_curves(tmp_path / 'missing.csv', tmp_path / 'none.png') is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ['curves.png', 'summary.csv']
    last = rows('dense')[-1]
    for key in ('eval_loss', 'eval_top1', 'eval_top5'):
        last[key] = ''  # --val-interval
    write_summary(summary, [*read_summary(summary), {**last, 'epoch': 12}])
    assert 'Top-1 accuracy, % (validation, last: 86.50)' in labels(draw_curves(read_summary(summary)))


def test_validation_after_every_third_epoch_is_one_line() -> None:
    """--val-interval: a line through missing values would have no part that can be seen."""
    some = [row if i % 3 == 0 else {**row, 'eval_loss': '', 'eval_top1': ''} for i, row in enumerate(rows('plain', 12))]
    for axis in draw_curves(some).axes[:2]:
        line = next(line for line in axis.get_lines() if line.get_label().startswith('validation'))
        assert list(line.get_xdata()) == [1, 4, 7, 10] and all(map(math.isfinite, line.get_ydata()))


def test_files_of_older_versions(tmp_path: Path) -> None:
    shutil.copy(OLD, tmp_path / 'summary.csv')
    old = read_summary(OLD)
    assert 'train_steps' not in old[0] and 'train_top1_mixed' not in old[0]
    figure = draw_curves(old, 'old')
    assert labels(figure) == {
        'Loss': ['train loss, all steps', 'train loss, mixed embeddings', 'train loss, unmixed', 'validation loss'],
        'Top-1 accuracy, % (validation, last: 99.44)': ['train, all steps', 'validation'],
        'How strong the mixing of embeddings is': ['effective examples']}
    # A run that goes on with this version writes more columns; what was there stays as it was.
    row = {**rows('dense')[-1], 'epoch': 30}
    write_summary(tmp_path / 'summary.csv', [*old, row])
    both = read_summary(tmp_path / 'summary.csv')
    assert [{k: r[k] for k in old[0]} for r in both[:-1]] == old and {r['train_steps'] for r in both[:-1]} == {''}
    assert {k: both[-1][k] for k in row} == {k: str(v) for k, v in row.items()}
    figure = draw_curves(both)
    assert 'What the steps mixed' in labels(figure) and len(figure.axes) == 5
    (tmp_path / 'small.csv').write_text('epoch,train_loss,eval_loss,eval_top1,eval_top5\n0,2,1.5,61.25,90\n')
    assert plot_curves(tmp_path / 'small.csv', tmp_path / 'small.png') is not None


# ----------------------------------------------------------------------------------------------------------- at the end

@pytest.mark.parametrize('given, counts, words', [
    (('dense', 'default'), {'steps': 1170, 'embeddings': 219, 'inputs': 600, 'nothing': 351},
     'resnet50, dense (default): embeddings mixed on 219 of 1 170 steps'),
    (('dense', 'default'), {'steps': 36, 'inputs': 1, 'nothing': 35},
     'resnet50, --multimix dense, but no step mixed embeddings'),
    (('multimix', 'paper'), {}, 'resnet50, multimix (paper)'),
    (('multimix', 'paper'), None, 'resnet50, multimix (paper)'),
    (('none', ''), {'steps': 36, 'nothing': 36}, 'resnet50, without MultiMix'),
    (('none', ''), {'steps': 1170, 'inputs': 1100}, 'resnet50, without MultiMix: inputs mixed on 1 100 of 1 170 steps'),
])
def test_headlines(given: tuple[str, str], counts: Optional[dict[str, int]], words: str) -> None:
    assert headline('resnet50', *given, counts and Counter(counts)) == words


def report(folder: Path, *flags: str, **kwargs: Any) -> str:
    args = parse_args(['--model', 'resnet18', '--epochs', '12', *flags])
    (folder / 'summary.csv').unlink(missing_ok=True)
    write(folder / 'summary.csv', 'dense')
    settings = yaml.safe_load(yaml.safe_dump(vars(args)))  # as args.yaml holds them
    path = write_report(folder, settings, '36 training and 9 validation images of 4 classes',
                        'Dense MultiMix, so and so.', in_plain_timm(folder, 'resnet18', 4, {}), torch.device('cpu'),
                        70.0, 12, **kwargs)
    return path.read_text()


def test_a_report_tells_what_was_mixed(tmp_path: Path) -> None:
    policy = MixingPolicy(MultiMixConfig('dense', preset='embeddings', prob=0.5), 4)
    for _ in range(40):
        policy.begin(torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]))
    n = policy.counts['embeddings']
    assert 5 < n < 35
    text = report(tmp_path, '--multimix', 'dense', '--multimix-preset', 'embeddings', counts=policy.counts)
    head, said = text.split('\n\n')[1:3]
    assert head == (f'`resnet18`, dense (embeddings): embeddings mixed on {n} of 40 steps; 36 training and 9 '
                    f'validation images of 4 classes.')
    assert said == f'Of 40 steps {n} mixed embeddings, 0 inputs, and {40 - n} nothing.'
    assert '| | epoch | top-1 % | top-5 % | validation loss |' in text
    assert '| last | 12 | 86.50 | 99.00 | 0.1667 |' in text
    assert '\nDense MultiMix, so and so.\n' in text


def test_an_average_that_was_not_validated_gets_no_numbers(tmp_path: Path) -> None:
    for more, validated in ((['--model-ema-force-cpu'], False), ([], True)):
        flags = ['--model-ema', *more]
        assert ('`model/` holds their average, which was not validated' in report(tmp_path, *flags)) != validated
        note = ema_note(parse_args(['--model', 'resnet18', *flags]), 20)
        assert note is not None and ('which is validated and saved.' if validated else 'which is saved.') in note


def test_a_report_claims_nothing_that_did_not_happen(tmp_path: Path) -> None:
    text = report(tmp_path, '--multimix', 'dense', counts=Counter(steps=36, inputs=1, mixup=1, nothing=35))
    assert '`resnet18`, --multimix dense, but no step mixed embeddings; 36 training' in text
    assert 'Of 36 steps 0 mixed embeddings, 1 inputs (1 mixup), and 35 nothing.' in text
    assert 'dense (default)' not in text
    for counts in (None, Counter()):  # a run of an older version with nothing left to train
        text = report(tmp_path, '--multimix', 'dense', counts=counts)
        assert '`resnet18`, dense (default); 36 training' in text and 'Of ' not in text and 'No step' not in text
    assert '`resnet18`, without MultiMix; 36 training' in report(tmp_path, '--multimix', 'none')
