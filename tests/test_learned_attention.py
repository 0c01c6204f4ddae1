"""Attention that learns: its equations, who moves whom, and where it lives."""
from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data import Mixup

from tests.models import build, quiet_wrap
from timm_multimix import MultiMixConfig, MultiMixTask, SettingError, unwrap, wrap
from timm_multimix.mixing import LearnedAttention, cross_entropy, extensions


@given(seed=st.integers(0, 2**31), B=st.integers(1, 6), P=st.integers(1, 6), D=st.integers(1, 6), C=st.integers(2, 6))
@settings(max_examples=100, deadline=None)
def test_a_step_is_the_equations(seed: int, B: int, P: int, D: int, C: int) -> None:
    """a, its loss, and what the first step of an Adam makes of the literal gradient."""
    g = torch.Generator().manual_seed(seed)
    Z, W, beta, u = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((B, P, D), (C, D), (C,), (D,)))
    u = u.float().double()
    target = torch.randint(0, C, (B,), generator=g)
    learned = LearnedAttention(D, lr=0.01)
    learned.load_state_dict({'u': u.float(), 'adam': {}})
    torch.testing.assert_close(learned(Z), extensions.learned_attention(Z, u))
    leaf = u.clone().requires_grad_()
    want = extensions.learned_attention_loss(Z, torch.nn.functional.one_hot(target, C).double(), leaf, W, beta)
    grad, = torch.autograd.grad(want, leaf)
    got = learned.learn(Z, Z @ W.t() + beta, lambda logits: cross_entropy(logits, target))
    torch.testing.assert_close(got, want.detach())
    step = 0.01 * grad / (grad.abs() + 1e-8)  # of Adam, the first
    torch.testing.assert_close(learned.u.detach().double(), u - step, rtol=0, atol=1e-4)


def test_positions_that_do_not_exist() -> None:
    """Padding gets nothing and teaches nothing, whatever it holds; an example of padding alone has no map."""
    Z, target = torch.randn(4, 3, 2), torch.arange(4) % 2
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False], [False, False, False]])
    found = []
    for padding in (0.0, torch.nan):
        learned = LearnedAttention(2, lr=0.1)
        filled = Z.masked_fill(~mask.unsqueeze(-1), padding)
        learned.learn(filled, filled, lambda logits: cross_entropy(logits, target), mask)
        found.append(learned(filled, mask))
    assert torch.equal(*found) and not found[0][~mask].any()
    torch.testing.assert_close(found[0].sum(1), torch.tensor([1.0, 1, 1, 0]))
    torch.testing.assert_close(found[0][1:2, :2], extensions.learned_attention(Z[1:2, :2], learned.u.detach()))


def test_it_finds_where_the_class_is() -> None:
    """One position of four shows the class, and says so in a feature."""
    learned = LearnedAttention(6, lr=0.02)
    for _ in range(300):
        target = torch.randint(0, 5, (32,))
        where = torch.randint(0, 4, (32,))
        Z = torch.randn(32, 4, 6) / 4
        Z[torch.arange(32), where] = torch.cat([torch.nn.functional.one_hot(target, 5), torch.ones(32, 1)], 1).float()
        learned.learn(Z, 5 * Z[..., :5], partial(cross_entropy, target=target))
    seen = learned(Z)[torch.arange(32), where]
    assert float(seen.mean()) > 0.5  # it began with 0.25


def test_neither_loss_moves_the_other() -> None:
    net, images, target = build('resnet')
    model = quiet_wrap(net, 'dense', attention='learned', attention_lr=0.1, input_size=(3, 64, 64))
    learned = model.multimix.learned
    out = model(images, target)
    assert float(learned.u.detach().abs().max()) > 0 and out.signal['loss_attention'].isfinite()
    u = learned.u.detach().clone()
    out.loss.backward()
    assert learned.u.grad is None and torch.equal(learned.u, u)  # the mixing loss does not reach it
    uniform = quiet_wrap(copy.deepcopy(net), 'dense', attention='uniform', input_size=(3, 64, 64))
    for p in uniform.parameters():
        p.grad = None
    lam = torch.rand(20, 4, 6).softmax(-1)
    fresh = quiet_wrap(copy.deepcopy(net), 'dense', attention='learned', input_size=(3, 64, 64))
    for p in fresh.parameters():
        p.grad = None
    uniform(images, target, lam=lam).loss.backward()
    fresh(images, target, lam=lam).loss.backward()  # it begins uniform, and learns beside the network, not through it
    for a, b in zip(uniform.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_evaluation_teaches_nothing() -> None:
    net, images, target = build('resnet')
    model = quiet_wrap(net, 'dense', attention='learned', input_size=(3, 64, 64)).eval()
    lam = torch.full((3, 4, len(images)), 1 / len(images))
    assert 'loss_mixed' in model(images, target, lam=lam).signal
    assert not model.multimix.learned.u.any()


def test_it_is_no_part_of_the_model() -> None:
    net, images, target = build('resnet')
    keys, numbers = set(net.state_dict()), sum(p.numel() for p in net.parameters())
    model = quiet_wrap(net, 'dense', attention='learned', input_size=(3, 64, 64))
    task = MultiMixTask(model, verbose=False)
    task(images, target)
    assert set(task.get_checkpoint_state()['state_dict']) == keys == set(model.state_dict())
    assert sum(p.numel() for p in model.parameters()) == numbers and unwrap(model) is net
    state = task.get_task_state()
    other = MultiMixTask(quiet_wrap(build('resnet')[0], 'dense', attention='learned', input_size=(3, 64, 64)),
                         verbose=False)
    other.load_task_state(state)
    for restored in (other.wrapped, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(restored.multimix.learned.u, model.multimix.learned.u)
    Z = torch.randn(3, 4, model.head_info.width)
    for learned in (other.wrapped.multimix.learned, model.multimix.learned):
        learned.learn(Z, Z[..., :5], lambda logits: cross_entropy(logits, torch.arange(3)))
    assert torch.equal(other.wrapped.multimix.learned.u, model.multimix.learned.u)  # Adam's state came along
    before = model.multimix.learned.u.detach().clone()
    model.eval()(images, target)
    assert torch.equal(model.multimix.learned.u, before)


def test_what_is_not_finite_is_not_learned() -> None:
    learned = LearnedAttention(3, lr=0.1)
    Z = torch.randn(4, 2, 3)
    Z[0, 0, 0] = torch.inf
    learned.learn(Z, Z, lambda logits: logits.sum())
    assert torch.equal(learned.u, torch.zeros(3))


def test_settings() -> None:
    config = MultiMixConfig('dense', attention='learned')
    assert config.attention_norm is None and config.attention_lr == 1e-3
    assert MultiMixConfig.from_dict(config.to_dict()) == config
    for settings_, says in ((dict(attention='learned', attention_norm='softmax'), 'is a softmax: drop it'),
                            (dict(attention_lr=0.1), 'learned is learned: drop it'),
                            (dict(attention='learned', attention_detach=False), 'a constant to all others'),
                            (dict(mode='multimix', attention='learned'), 'only --multimix dense')):
        with pytest.raises(SettingError, match=says):
            MultiMixConfig(**settings_)  # type: ignore[arg-type]


def test_another_rate_and_what_is_refused() -> None:
    model = wrap(timm.create_model('test_resnet', num_classes=3), 'dense', attention='learned')
    model.reconfigure(attention_lr=0.5)
    assert model.multimix.learned.adam.param_groups[0]['lr'] == 0.5
    given = wrap(timm.create_model('test_resnet', num_classes=3), 'dense', mixup_fn=Mixup(0.2, num_classes=3))
    before = given.multimix.config
    with pytest.raises(SettingError, match='give only one'):
        given.reconfigure(mixup=0.3, label_smoothing=0.2)
    assert given.multimix.config is before


def test_without_a_gradient_nothing_is_learned() -> None:
    net, images, target = build('resnet')
    model = quiet_wrap(net, 'dense', attention='learned', input_size=(3, 64, 64))
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            model(images, target)
    assert not model.multimix.learned.u.any()


@pytest.mark.parametrize('net, how', [
    ('resnet', {'attention': 'gap'}), ('resnet', {'attention': 'gap', 'attention_norm': 'softmax'}),
    ('resnet', {'attention': 'cam', 'attention_norm': 'softmax'}), ('resnet', {'attention': 'learned'}),
    ('vit averaged', {'attention': 'self'})])
def test_an_image_that_is_not_finite_makes_the_loss_nan(net: str, how: dict[str, str]) -> None:
    """And no error: a training leaves such an update out."""
    model, images, target = build(net)
    model = quiet_wrap(model, 'dense', **how)
    images[0] = torch.nan
    out = model(images, target)
    assert bool(out.loss.isnan())
