"""`advise`: what the nearest measured trainings say, of runs that train.py left behind."""
from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from benchmarks.advice import CASES, judge, report, training
from tests import forked
from tests.conftest import ROOT
from timm_multimix import SettingError
from timm_multimix.__main__ import main
from timm_multimix.runs.advice import (
    OPTIONS,
    PRETRAINED,
    SCRATCH,
    TAIL,
    WEIGHTED_TAIL,
    Training,
    advise,
    closest,
    evidence,
    read_run,
    sentences,
    table,
)
from timm_multimix.runs.flags import build_parser
from timm_multimix.runs.summary import read_summary, write_summary

RUN = Training('', SCRATCH, 20, 100, 99.0, 70.0)


def known(train_top1: float, dense: float, inputs: float, **changed: object) -> Training:
    found = replace(RUN, title=f'{train_top1} {dense}', train_top1=train_top1,
                    gains={'Dense MultiMix': dense, 'mixup and CutMix': inputs})
    return replace(found, **changed)  # type: ignore[arg-type]


def test_the_evidence_is_what_the_studies_measured() -> None:
    assert [asdict(t) for t in evidence()] == [asdict(training(where)) for where in CASES], (
        'write it anew: python -m benchmarks.advice write')


def test_the_page_says_how_often_the_advice_is_right() -> None:
    assert report(judge(evidence())) in (ROOT / 'docs' / 'should_i_mix.md').read_text()


def test_the_nearest_decide() -> None:
    near = [known(98, 2, 1), known(97, 3, 1), known(96, 1, 1)]
    far = [known(50, -9, -9), known(40, -9, -9), known(30, -9, -9)]
    option, gain, like = advise(RUN, far + near)
    assert option == 'Dense MultiMix' and 1.5 < gain < 2.5 and like[:3] == near
    option, gain, like = advise(replace(RUN, train_top1=41.0), far + near)
    assert (option, gain) == ('no mixing', 0) and set(like[:3]) == set(far)


def test_four_points_away_counts_half() -> None:
    assert advise(RUN, [known(99, 3, 0), known(95, 1, 0)])[1] == pytest.approx((3 + 1 / 2) / 1.5)


def test_an_option_that_the_nearest_did_not_measure_does_not_count() -> None:
    """Where it was measured may be where all options gain."""
    some = [known(98, 2, 1), replace(known(90, 0, 0), gains={'mixup and CutMix': 4.0})]
    assert advise(RUN, some)[0] == 'Dense MultiMix'
    assert advise(replace(RUN, train_top1=90.0), some)[0] == 'mixup and CutMix'
    assert advise(replace(RUN, train_top1=94.0), some)[0] == 'mixup and CutMix'  # equally near


def test_a_gain_within_chance_is_none() -> None:
    gains = [known(98, gain, -1) for gain in (2.0, -1.0, 0.5)]  # 0.5 ± 0.7
    assert advise(RUN, gains)[:2] == ('no mixing', 0.0)
    assert advise(RUN, [known(98, gain, -1) for gain in (2.0, 1.0, 1.5)])[0] == 'Dense MultiMix'


def test_images_a_class_count_too() -> None:
    few, many = known(98, 2, 0, images=100), known(98, -2, 0, images=100_000)
    assert advise(RUN, [many, few])[2] == [few, many]
    assert advise(replace(RUN, images=None), [many, few])[2] == [many, few]  # unknown: equally near


def test_pretrained_weights_are_another_case() -> None:
    scratch, tuned = known(99, 2, 1), known(50, -1, -1, kind=PRETRAINED)
    assert advise(replace(RUN, kind=PRETRAINED), [scratch, tuned])[0::2] == ('no mixing', [tuned])
    with pytest.raises(SettingError, match='starts from pretrained weights. No such training'):
        advise(replace(RUN, kind=PRETRAINED), [scratch])


def test_a_pretrained_run_is_advised_by_pretrained_runs() -> None:
    option, _, like = advise(replace(RUN, kind=PRETRAINED, images=20), evidence())
    options = set(OPTIONS[PRETRAINED])
    assert option in options and like[0].kind == PRETRAINED and set(like[0].gains) <= options
    assert '--multimix-preset embeddings' in OPTIONS[PRETRAINED]['Dense MultiMix']
    assert set(table(like).splitlines()[0].split()) > {'manifold'} and 'manifold' not in table([evidence()[0]])


def test_words() -> None:
    near, far = known(98, 2, 1, noise={'no mixing': False, 'Dense MultiMix': True}), known(60, 1, 1)
    text = sentences(RUN, 'no mixing', 0, [near])
    assert text.startswith('do not mix.\n\nIt trained for 20 epochs from scratch, with 100 images a class.\n')
    assert text.endswith('\nGains are points of top-1 over the same training with neither mixing nor smoothed labels.')
    text = sentences(RUN, 'Dense MultiMix', 2.34, [far])
    assert 'try Dense MultiMix' in text and 'gained 2.3 points' in text
    assert '\nNo measured training is close to it.\nIn the trainings below the options do not differ' in text
    assert 'equally like it' not in text and 'say --images-per-class' not in text
    text = sentences(replace(RUN, images=None, unlike=['Its loss is another.']), 'no mixing', 0, [near] * 5)
    assert '\nIts loss is another.\nHow many images a class has is not known: say --images-per-class N.\n' in text
    assert 'The 5 trainings below are equally like it.' in text
    assert closest(RUN, [near] * 5 + [far]) == [near] * 5 and closest(RUN, [near, near, far, far]) == [
        near, near, far, far] and closest(RUN, [near]) == [near]
    tail = sentences(replace(RUN, kind=TAIL), 'no mixing', 0, [near])
    assert 'uneven classes, with 100 images a class on average' in tail and 'points of the mean over classes' in tail
    shown = table([known(98, 2, 1), replace(known(97, 0, 0), gains={})]).splitlines()
    assert len({len(line) for line in shown}) == 1 and shown[1].split()[-2:] == ['+1.0', '+2.0']


def test_options_are_flags_of_the_trainer() -> None:
    for options in OPTIONS.values():
        for flags in options.values():
            build_parser().parse_args(flags.split())


def test_a_run_of_the_trainer(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = forked.run('train.py', '--data-dir', str(image_folder), '--model', 'test_resnet', '--img-size', '32',
                      '--epochs', '1', '--warmup-epochs', '0', '--batch-size', '6', '--workers', '0',
                      '--output', str(tmp_path), '--experiment', 'plain')
    assert done.returncode == 0, done.stderr
    run = tmp_path / 'plain'
    assert f'advise {run}' in done.stdout and f'advise {run}' in (run / 'report.md').read_text()
    read = read_run(run)
    assert (read.kind, read.epochs, read.images) == (SCRATCH, 1, 6)  # 18 images of 3 classes
    assert main(['advise', str(run)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f'{run}: ') and '6 images a class' in out and evidence()[0].title.split(',')[0] in out
    assert read_run(run, 1000).images == 1000

    args = yaml.safe_load((run / 'args.yaml').read_text())
    for changed, words in (({'multimix': 'dense'}, 'mixes already (--multimix)'),
                           ({'mixup': 0.2, 'cutmix': 1.0}, 'mixes already (--mixup, --cutmix)'),
                           ({'cutmix_minmax': [0.2, 0.8]}, 'mixes already (--cutmix-minmax)')):
        mixed = tmp_path / 'mixed'
        shutil.copytree(run, mixed, dirs_exist_ok=True)
        (mixed / 'args.yaml').write_text(yaml.safe_dump({**args, **changed}))
        assert main(['advise', str(mixed)]) == 2
        assert words in capsys.readouterr().err
    for begins in ({'pretrained': True}, {'pretrained_path': 'a.safetensors'}, {'initial_checkpoint': 'hf-hub:a/b'}):
        (mixed / 'args.yaml').write_text(yaml.safe_dump({**args, **begins}))
        assert read_run(mixed).kind == PRETRAINED
    assert read_summary(run / 'summary.csv')[-1]['train_smallest_class'] == '6'
    for smallest, weights, kind in ((2, '', PRETRAINED), (1, '', TAIL), (1, 'auto', WEIGHTED_TAIL)):
        rows = [{**row, 'train_smallest_class': smallest} for row in read_summary(run / 'summary.csv')]
        write_summary(mixed / 'summary.csv', rows)
        (mixed / 'args.yaml').write_text(yaml.safe_dump({**args, 'pretrained': True, 'class_weight': weights}))
        assert read_run(mixed).kind == kind and main(['advise', str(mixed)]) == 0
        out = capsys.readouterr().out
        assert kind in out and ('images a class on average' in out) == (kind != PRETRAINED)
    write_summary(mixed / 'summary.csv', [{k: v for k, v in row.items() if 'class' not in k} for row in rows])
    assert read_run(mixed).kind == PRETRAINED  # an older version
    (mixed / 'args.yaml').write_text(yaml.safe_dump({**args, 'epochs': args['epochs'] + 2}))
    assert main(['advise', str(mixed)]) == 0
    assert f'of its {args["epochs"] + 2} epochs: resume it' in capsys.readouterr().out
    weighted = {**args, 'pretrained': True, 'class_weight': ''}
    for changed, words in (({}, 'first try --bn-eval'), ({'smoothing': 0.0}, 'first try --smoothing 0.1'),
                           ({'bce_loss': True}, 'Its loss is binary'), ({'bn_eval': True}, '')):
        (mixed / 'args.yaml').write_text(yaml.safe_dump({**weighted, **changed}))
        assert [words in line for line in read_run(mixed).unlike].count(True) == bool(words), changed
    (mixed / 'args.yaml').write_text(yaml.safe_dump(args))
    assert read_run(mixed).unlike == []
    write_summary(mixed / 'summary.csv', [{**rows[0], 'train_top1': 'nan'}])
    assert main(['advise', str(mixed)]) == 2 and 'no epoch with a training' in capsys.readouterr().err
    timms = {'epoch': 0, 'train_loss': 1.0, 'eval_loss': 1.0, 'eval_top1': 50.0}
    write_summary(mixed / 'summary.csv', [timms])
    assert main(['advise', str(mixed)]) == 2 and "timm's own train.py does not write" in capsys.readouterr().err
    assert main(['advise', str(mixed), '--train-top1', '60']) == 0 and 'is 60.0 % on tr' in capsys.readouterr().out
    for number in ('-5', 'nan', '0'):
        assert main(['advise', str(run), '--images-per-class', number]) == 2
        assert f'--images-per-class is {number}, but' in capsys.readouterr().err
    assert main(['advise', str(run / 'model')]) == 2 and f'Did you mean {run}?' in capsys.readouterr().err
    (mixed / 'args.yaml').write_text('')
    assert main(['advise', str(mixed)]) == 2 and 'args.yaml is damaged' in capsys.readouterr().err
    (run / 'summary.csv').unlink()
    for folder, words in ((run, 'no epoch with'), (tmp_path, 'no args.yaml')):
        with pytest.raises(SettingError, match=words):
            read_run(folder)
