"""Attacks on linear models, where what they can reach is known in closed form."""
from __future__ import annotations

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from tests.evaluate.conftest import batches
from timm_multimix import SettingError
from timm_multimix.evaluate import robustness
from timm_multimix.evaluate.tables.robustness import CURVE, PixelModel, fgsm, gradient, pgd

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def linear(classes: int, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear classifier of normalised 3×4×4 images, and its weight and bias on pixels in [0, 1]."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, classes)).double()
    mean, std = (torch.tensor(x, dtype=torch.float64).repeat_interleave(16) for x in (MEAN, STD))
    weight = net[1].weight.detach() / std
    return net, weight, net[1].bias.detach() - weight @ mean


def pixels(n: int, low: float = 0.4, high: float = 0.6) -> Tensor:
    g = torch.Generator().manual_seed(3)
    return low + (high - low) * torch.rand(n, 3, 4, 4, generator=g, dtype=torch.float64)


def normalise(x: Tensor) -> Tensor:
    return (x - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


def attacked_margin(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """min over ‖δ‖∞ ≤ ε, x + δ in [0, 1], of logit_y − logit_other, of two classes: pixel by pixel, exactly."""
    d = weight[y] - weight[1 - y]
    x = x.flatten(1)
    worst = torch.where(d > 0, (x - eps).clamp(min=0), (x + eps).clamp(max=1))
    return (worst * d).sum(1) + bias[y] - bias[1 - y]


@pytest.mark.parametrize('low, high', [(0.4, 0.6), (0.0, 1.0)])  # the second: [0, 1] cuts the attack short
def test_fgsm_and_pgd_reach_the_optimum_of_a_linear_model(low: float, high: float) -> None:
    net, weight, bias = linear(2)
    x, y = pixels(40, low, high), torch.arange(40) % 2
    model = PixelModel(net, MEAN, STD).double()
    torch.testing.assert_close(model(x), x.flatten(1) @ weight.T + bias)
    for eps in (1 / 255, 8 / 255, 0.2):
        best = attacked_margin(x, y, weight, bias, eps)
        generator = torch.Generator().manual_seed(0)
        for moved in (fgsm(model, x, y, eps), pgd(model, x, y, eps, eps / 4, 10, generator)):
            assert (moved - x).abs().max() <= eps + 1e-12 and moved.min() >= 0 and moved.max() <= 1
            z = model(moved)
            margin = z.gather(1, y[:, None])[:, 0] - z.gather(1, 1 - y[:, None])[:, 0]
            torch.testing.assert_close(margin, best)


def test_accuracy_over_eps_is_the_closed_form() -> None:
    net, weight, bias = linear(2)
    x = pixels(200)
    with torch.no_grad():
        y = (x.flatten(1) @ weight.T + bias).argmax(1)
    y[::5] = 1 - y[::5]  # some are wrong already
    curve = (0.001, 0.002, 0.004, 0.01, 0.1)
    table = robustness(net, batches(normalise(x), y), mean=MEAN, std=STD, fgsm_eps=0.002, pgd_eps=0.004, step=0.002,
                       curve=curve)
    exact = [100 * float((attacked_margin(x, y, weight, bias, eps) > 0).double().mean()) for eps in (0, *curve)]
    assert 0 < exact[2] < exact[1] < exact[0] == 80 and exact[-1] == 0  # a curve that says something
    assert table.data['curve']['pgd'] == pytest.approx(exact)
    assert table.data['curve']['fgsm'] == pytest.approx(exact)
    assert all(r >= e for r, e in zip(table.data['curve']['random'], exact))
    assert table['no attack, %'] == exact[0]
    assert table['FGSM, ε = 0.51/255, %'] == pytest.approx(exact[2])
    assert table['PGD, ε = 1.02/255, %'] == pytest.approx(exact[3])
    assert all(table.data['checks'].values()) and table.notes == ['All 5 checks of the attack passed.']


def test_no_attack_beats_the_bound_of_many_classes() -> None:
    """logit_y − logit_j loses ε‖w_y − w_j‖₁ at most: above that for every j an image is safe, whatever the attack."""
    net, weight, bias = linear(6)
    x = pixels(100)
    logits = x.flatten(1) @ weight.T + bias
    y = logits.argmax(1)
    model = PixelModel(net, MEAN, STD).double()
    for eps in (0.002, 0.01, 0.03):
        loss = eps * (weight[y][:, None] - weight).abs().sum(2)
        margin = logits.gather(1, y[:, None]) - logits - loss
        safe = (margin + torch.where(torch.eye(6)[y] > 0, 1e9, 0)).min(1).values > 0
        right = model(pgd(model, x, y, eps, eps / 4, 20, torch.Generator().manual_seed(0))).argmax(1) == y
        assert bool(right[safe].all())
        if eps == 0.01:
            assert 0 < int(safe.sum()) < 100 and not right.all()


def test_one_step_of_pgd_by_hand() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False)).double()
    model[1].weight.data = torch.tensor([[1.0, -2, 0], [0, 0, 0]], dtype=torch.float64)
    x, y = torch.tensor([[[[0.5]], [[0.99]], [[0.5]]]], dtype=torch.float64), torch.tensor([0])
    # away from class 0: the first pixel down, the second up as far as 1, the third has no gradient
    assert fgsm(model, x, y, 0.1).flatten().tolist() == pytest.approx([0.4, 1.0, 0.5])
    p = float(torch.tensor(0.5 - 2 * 0.99, dtype=torch.float64).sigmoid())
    assert gradient(model, x, y).flatten().tolist() == pytest.approx([p - 1, -2 * (p - 1), 0])


class Masked(nn.Module):
    """Right, and without a gradient: what a broken attack would call robust."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        return (1000 * z.sign() * (z.abs() + 1)).detach() + 0 * z


def test_masked_gradients_are_found_out() -> None:
    net, weight, bias = linear(2)
    x = pixels(60)
    y = (x.flatten(1) @ weight.T + bias).argmax(1)
    table = robustness(Masked(net), batches(normalise(x), y), mean=MEAN, std=STD)
    failed = [name for name, passed in table.data['checks'].items() if not passed]
    assert any('near zero' in name for name in failed) and any('exactly zero' in name for name in failed)
    assert len(table.notes) == len(failed) and table.notes[0].startswith('Check failed')
    assert table['zero gradient, % of right ones'] == 100


def test_restarts_only_make_it_stronger(resnet: nn.Module) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(32, 3, 32, 32, generator=g)
    mean, std = resnet.pretrained_cfg['mean'], resnet.pretrained_cfg['std']
    normal = (x - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    with torch.no_grad():
        y = resnet(normal).argmax(1)
    before = {k: v.clone() for k, v in resnet.state_dict().items()}
    kept = [robustness(resnet, [(normal, y)], attacks=['pgd'], pgd_eps=0.1, step=0.02, steps=2, restarts=r,
                       curve=())['PGD, ε = 25.5/255, %'] for r in (1, 4)]
    assert kept[1] <= kept[0] < 100
    assert all(p.grad is None for p in resnet.parameters()) and not resnet.training
    assert all(torch.equal(v, before[k]) for k, v in resnet.state_dict().items())


def test_the_published_settings_are_the_defaults(resnet: nn.Module) -> None:
    table = robustness(resnet, [(torch.zeros(4, 3, 32, 32), torch.arange(4))], curve=())
    assert {'FGSM, ε = 8/255, %', 'PGD, ε = 4/255, %'} < set(table.rows)
    assert table.data['settings']['step'] == 2 / 255
    assert CURVE[0] < 1 / 255 and CURVE[-1] > 16 / 255


@pytest.mark.parametrize('settings, says', [
    ({'attacks': ['fgms']}, 'fgms'), ({'pgd_eps': 0}, 'pgd_eps is 0'), ({'steps': 1.5}, 'steps is 1.5'),
    ({'curve': (0.1, -1)}, r'curve\[1\] is -1'), ({'mean': (0.0,) * 3, 'std': (1.0,) * 3}, 'normalises with other')])
def test_settings(resnet: nn.Module, loader: list[tuple[Tensor, Tensor]], settings: dict, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        robustness(resnet, loader, **settings)


def test_a_model_that_does_not_say_how_it_normalises() -> None:
    with pytest.raises(SettingError, match='mean and std are not given'):
        robustness(linear(2)[0], [])


def test_autoattack() -> None:
    """The package is not on every machine: without it the message says how to get it; with it no attack is stronger."""
    net, weight, bias = linear(10)
    net.float()
    x = pixels(6).float()
    y = (x.double().flatten(1) @ weight.T + bias).argmax(1)
    settings = dict(mean=MEAN, std=STD, attacks=['pgd', 'autoattack'], pgd_eps=0.004, step=0.001, curve=())
    try:
        import autoattack  # noqa: F401
    except ImportError:
        with pytest.raises(SettingError, match='pip install'):
            robustness(net, batches(normalise(x), y), **settings)
        return
    table = robustness(net, batches(normalise(x), y), **settings)
    assert table['AutoAttack, ε = 1.02/255, %'] <= table['PGD, ε = 1.02/255, %']
