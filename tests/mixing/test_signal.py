"""The signal of mixed targets: measured, and foretold."""
import math

import pytest
import torch

from timm_multimix import MultiMixConfig, sample_lam
from timm_multimix.mixing import expected_signal, signal
from timm_multimix.mixing.diagnostics import NO_SIGNAL, signal_warning


def test_measures_what_it_says() -> None:
    lam, y = sample_lam(200, 1, 12, 0.4), torch.eye(4)[torch.arange(12) % 4]
    got = signal(lam, y)
    w = lam[:, 0].double()
    mixed = w @ y.double()
    entropy = -torch.xlogy(mixed, mixed).sum(1).mean() / math.log(4)
    assert float(got['effective']) == pytest.approx(float((1 / w.square().sum(1)).mean()), rel=1e-4)
    assert float(got['target_entropy']) == pytest.approx(float(entropy), rel=1e-4)


def test_ends_of_the_scale() -> None:
    y = torch.eye(5)[torch.arange(10) % 5]
    nothing_mixed = torch.eye(10)[:, None]
    got = signal(nothing_mixed, y)
    assert float(got['effective']) == pytest.approx(1) and float(got['target_entropy']) == pytest.approx(0, abs=1e-6)
    all_mixed = torch.full((7, 1, 10), 0.1)
    got = signal(all_mixed, y)
    assert float(got['effective']) == pytest.approx(10) and float(got['target_entropy']) == pytest.approx(1)


def test_follows_the_attention() -> None:
    lam = torch.full((6, 2, 4), 0.25)
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    # Position 0 keeps one example, position 1 three, with three times the weight.
    assert float(signal(lam, torch.eye(4), a)['effective']) == pytest.approx((1 + 3) / 2)
    assert float(signal(lam, torch.eye(4), a, normalize='all')['effective']) == pytest.approx(0.25 * 1 + 0.75 * 3)


def test_one_class_in_the_batch_is_no_signal_and_no_nan() -> None:
    got = signal(sample_lam(20, 1, 8, 1.0), torch.eye(3)[torch.zeros(8, dtype=torch.long)])
    assert float(got['target_entropy']) == 1


def test_setting_in_effective_examples_holds_for_every_batch_size() -> None:
    for batch in (16, 64, 256):
        got = expected_signal(MultiMixConfig('multimix', effective=2.0), batch, 10)['effective']
        assert 1.8 < got < 2.6, (batch, got)


def test_paper_setting_has_no_signal_and_default_has() -> None:
    paper = expected_signal(MultiMixConfig('dense', preset='paper'), 128, 10)
    assert 50 < paper['effective'] < 80 and paper['target_entropy'] > NO_SIGNAL
    assert expected_signal(MultiMixConfig('dense'), 128, 10)['target_entropy'] < 0.6


def test_warns_of_a_term_without_signal() -> None:
    def of(**settings: object) -> object:
        return signal_warning(MultiMixConfig('multimix', **settings), 128, 10)  # type: ignore[arg-type]

    assert of() is None
    everywhere = of(preset='embeddings', alpha=(0.5, 2.0), clean_weight=0.0)
    assert 'Nothing will be learned' in everywhere and '--multimix-effective 2' in everywhere  # type: ignore[operator]
    half = of(alpha=(0.5, 2.0), clean_weight=1.0)  # the clean term carries a signal, and the other does not
    assert half.startswith('50% of the loss of the steps that mix embeddings teaches nothing')  # type: ignore[attr-defined]
    assert of(alpha=(0.5, 2.0), clean_weight=3.0).startswith('25% of the loss')  # type: ignore[attr-defined]
    assert of(alpha=(0.5, 2.0), prob=0.0) is None
    assert 'On 50% of the steps' in of(preset='paper')  # type: ignore[operator]
    assert 'Nothing will be learned' in of(preset='paper', prob=1.0)  # type: ignore[operator]


def test_foretelling_leaves_the_users_random_numbers_alone() -> None:
    torch.manual_seed(4)
    want = torch.rand(3)
    torch.manual_seed(4)
    expected_signal(MultiMixConfig('dense'), 32, 10)
    assert torch.equal(torch.rand(3), want)
