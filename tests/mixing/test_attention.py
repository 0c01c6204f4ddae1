"""Attention maps against their definition, and where they have nothing to hold on to."""
import pytest
import torch

from timm_multimix import SettingError, attention
from timm_multimix.mixing import reference


@pytest.mark.parametrize('norm', ['l1_relu', 'softmax'])
def test_gap_and_cam_match_the_definition(norm: str) -> None:
    z, w = torch.randn(5, 7, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    target = torch.tensor([0, 3, 1, 1, 2])
    y = torch.nn.functional.one_hot(target, 4).double()
    h = reference.l1_relu if norm == 'l1_relu' else lambda s: s.softmax(1)
    torch.testing.assert_close(attention(z, 'gap', norm), h(reference.gap_scores(z)))
    expected = h(reference.cam_scores(z, y, w))
    torch.testing.assert_close(attention(z, 'cam', norm, target=target, weight=w), expected)
    torch.testing.assert_close(attention(z, 'cam', norm, target=y, weight=w), expected)


def test_cam_of_soft_targets_mixes_the_rows() -> None:
    z, w, y = torch.randn(3, 4, 5).double(), torch.randn(2, 5).double(), torch.rand(3, 2).double().softmax(1)
    want = reference.l1_relu(reference.cam_scores(z, y, w))
    torch.testing.assert_close(attention(z, 'cam', target=y, weight=w), want)


def test_uniform() -> None:
    assert torch.equal(attention(torch.randn(2, 4, 3), 'uniform'), torch.full((2, 4), 0.25))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('scale', [0.0, 1e-30, 1.0, 200.0])
def test_maps_sum_to_one_whatever_the_features(dtype: torch.dtype, scale: float) -> None:
    z = (torch.randn(6, 9, 2048) * scale).to(dtype)
    for norm in ('l1_relu', 'softmax'):
        a = attention(z, 'gap', norm)
        assert a.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.isfinite(a).all() and (a >= 0).all()
        torch.testing.assert_close(a.sum(1), torch.ones(6, dtype=a.dtype))


def test_a_map_without_a_positive_score_is_uniform_and_has_no_nan_gradient() -> None:
    z = torch.zeros(2, 3, 4, requires_grad=True)
    a = attention(z)
    torch.testing.assert_close(a, torch.full((2, 3), 1 / 3))
    a.sum().backward()
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize('args', [('map',), ('gap', 'l2')])
def test_unknown_names(args: tuple) -> None:
    with pytest.raises(SettingError, match='kind is one of gap, cam, uniform'):
        attention(torch.randn(1, 2, 3), *args)
