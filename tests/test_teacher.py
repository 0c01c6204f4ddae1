"""A teacher at every door: one's own loop, the task, train.py; what it needs, and what it leaves behind."""
from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch import Tensor

from tests.models import build, quiet_wrap
from timm_multimix import MultiMixConfig, MultiMixTask, SettingError, sample_lam, unwrap
from timm_multimix.mixing import extensions
from timm_multimix.policy import told


def same(images: Tensor) -> Tensor:
    """A teacher that is a function: it says a little of every image."""
    return images.double().flatten(1)[:, :5] * 3


@pytest.mark.parametrize('mode', ['multimix', 'dense'])
@pytest.mark.parametrize('reading', ['targets', 'logits'])
@pytest.mark.parametrize('settings', [
    {}, dict(label_smoothing=0.1, class_weight=(1, 2, 3, 0.5, 1)), dict(bce_loss=True)], ids=str)
def test_the_step_is_the_equations(mode: str, reading: str, settings: dict[str, Any]) -> None:
    net, images, target = build('resnet')
    model = quiet_wrap(net.double(), mode, attention='uniform' if mode == 'dense' else None, teacher=same,
                       teacher_weight=0.3, teacher_temperature=2.0, teacher_start=0, teacher_reading=reading,
                       input_size=(3, 64, 64), **settings)
    images = images.double()
    B, C = 6, 5
    P = model.head_info.positions if model.head_info else 1
    lam = sample_lam(20, P, B, 0.5, dtype=torch.float64)
    out = model(images, target, lam=lam)
    if mode == 'dense':
        z = net.forward_features(images).flatten(2).transpose(1, 2)
    else:
        z = net.forward_head(net.forward_features(images), pre_logits=True).unsqueeze(1)
    Y = torch.nn.functional.one_hot(target, C).double()
    w = None if 'class_weight' not in settings else torch.tensor(settings['class_weight'], dtype=torch.float64)
    v = None if w is None else extensions.weigh(Y, w)
    T = same(images).unsqueeze(1).expand(B, P, C)

    def literal(Z: Tensor, lam: Tensor, T: Tensor) -> Tensor:
        a = torch.full(Z.shape[:2], 1 / Z.shape[1]).double()
        return extensions.dense_multimix_loss(
            Z, extensions.smooth(Y, settings.get('label_smoothing', 0.0)), lam, a, net.fc.weight, net.fc.bias,
            binary='bce_loss' in settings, w=w, v=v, teacher=extensions.Teacher(T, 0.3, 2.0, reading))

    # BatchNorm in train mode makes the features of a second pass the same to rounding
    torch.testing.assert_close(out.signal['loss_mixed'], literal(z, lam, T), rtol=1e-8, atol=0)
    clean = literal(z.mean(1, keepdim=True), torch.eye(B).double().unsqueeze(1), T[:, :1])
    torch.testing.assert_close(out.signal['loss_clean'], clean, rtol=1e-8, atol=0)
    torch.testing.assert_close(out.loss, (out.signal['loss_mixed'] + clean) / 2)


def test_positions_have_predictions_of_their_own() -> None:
    net, images, target = build('resnet')
    model = quiet_wrap(net.double(), 'dense', attention='uniform', teacher='ema', teacher_at='position',
                       teacher_start=0, input_size=(3, 64, 64))
    ema = ModelEmaV3(model)
    model.set_teacher(ema)
    images = images.double()
    lam = sample_lam(20, model.head_info.positions, 6, 0.5, dtype=torch.float64)
    out = model(images, target, lam=lam)
    averaged = unwrap(ema)
    with torch.no_grad():
        T = averaged.fc(averaged.forward_features(images).flatten(2).transpose(1, 2))
    z = net.forward_features(images).flatten(2).transpose(1, 2)
    want = extensions.dense_multimix_loss(
        z, torch.nn.functional.one_hot(target, 5).double(), lam, torch.full(z.shape[:2], 1 / z.shape[1]).double(),
        net.fc.weight, net.fc.bias, teacher=extensions.Teacher(T, 0.5))
    torch.testing.assert_close(out.signal['loss_mixed'], want, rtol=1e-8, atol=0)
    assert float(T.std(1).mean()) > 1e-3  # positions differ
    with pytest.raises(SettingError, match="wrapped for 'dense' itself"):
        model.set_teacher(copy.deepcopy(net))


def test_another_view_of_the_images() -> None:
    """The teacher's logits of the mirror image are the targets; the network sees the images as they are."""
    net, images, target = build('resnet')
    lam = sample_lam(20, 1, 6, 0.5, dtype=torch.float64)
    losses = []
    for view, teacher in (('flip', same), ('same', lambda x: same(x.flip(-1))), ('same', same)):
        model = quiet_wrap(net.double(), 'multimix', teacher=teacher, teacher_start=0, teacher_view=view)
        losses.append(model(images.double(), target, lam=lam).loss)
    torch.testing.assert_close(losses[0], losses[1])
    assert abs(float(losses[0] - losses[2])) > 1e-6
    with pytest.raises(SettingError, match="goes with teacher_at 'image'"):
        MultiMixConfig('dense', teacher='ema', teacher_at='position', teacher_view='flip')


def test_elsewhere_than_at_the_embedding() -> None:
    """layer: the mixtures of both readings, of images."""
    for reading in ('targets', 'logits'):
        for settings in ({}, dict(class_weight=(1, 2, 3, 0.5, 1)), dict(bce_loss=True)):
            net, images, target = build('resnet')
            model = quiet_wrap(net.double(), 'multimix', layer='input', n='batch', clean_weight=0, teacher=same,
                               teacher_start=0, teacher_reading=reading, **settings)
            images, lam = images.double(), sample_lam(6, 1, 6, 0.5, dtype=torch.float64)
            out = model(images, target, lam=lam)
            L = net((lam[:, 0] @ images.flatten(1)).view_as(images))
            Y, w = torch.nn.functional.one_hot(target, 5).double(), settings.get('class_weight')
            binary = 'bce_loss' in settings
            says = extensions.said(same(images), lam[:, 0], extensions.Teacher(same(images), 0.5, 1.0, reading), binary,
                                   False)
            mixed = extensions.taught(lam[:, 0] @ Y, says, 0.5)
            if w is None:
                want = extensions.compare(L, mixed, binary, None).mean()
            else:
                w = torch.tensor(w, dtype=torch.float64)
                want = extensions.compare(L, mixed, False, w).sum() / extensions.weigh(mixed, w).sum()
            torch.testing.assert_close(out.loss, want, rtol=1e-8, atol=0)


def test_steps_without_mixing_have_the_teacher_too() -> None:
    """The control: the same teacher, and nothing is mixed."""
    net, images, target = build('resnet')
    model = quiet_wrap(net, 'dense', prob=0, teacher=same, teacher_start=0.5)
    model.set_progress(0.25)
    out = model(images, target)
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(out.logits, target))
    model.set_progress(0.5)
    out = model(images, target)
    soft = torch.nn.functional.one_hot(target, 5) / 2 + same(images).softmax(1).float() / 2
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(out.logits, soft))
    assert model.policy.counts['taught'] == 1 and 'A teacher had its share on 1.' in told(model.policy.counts)
    assert model.eval()(images, target).loss == torch.nn.functional.cross_entropy(model(images), target)


def test_it_starts_when_the_settings_say() -> None:
    net, images, target = build('resnet')
    model = quiet_wrap(net, 'multimix', teacher=same, teacher_start_epoch=3)
    for epoch, teaches in ((0, False), (2.9, False), (3, True), (9, True)):
        model.set_progress(epoch, 10)
        assert model.policy.teaches == teaches and model.policy.choose(7).teaches == teaches
    with pytest.raises(SettingError, match='teacher_start_epoch is 3, so the policy must know the epoch'):
        model.set_progress(0.5)
    other = quiet_wrap(build('resnet')[0], 'multimix', teacher=same, teacher_start=0.5)
    with pytest.warns(UserWarning, match='so the teacher has its share from the first step on'):
        other(images, target)
    assert other.policy.counts['taught'] == 1


def test_the_average_teaches_and_leaves_no_trace() -> None:
    net, images, target = build('resnet')
    keys = set(net.state_dict())
    task = MultiMixTask(quiet_wrap(net, 'dense', teacher='ema', teacher_start=0), verbose=False)
    with pytest.raises(SettingError, match='there is no network to ask: average the weights'):
        task(images, target)
    task.setup_ema(decay=0.5)
    before = task(images, target)['loss'].detach()
    with torch.no_grad():  # another average, another loss
        task.get_eval_model(ema=True).get_classifier().weight.mul_(-20)
    task.wrapped.policy.step -= 1
    assert abs(float(task(images, target)['loss'].detach() - before)) > 1e-3
    task.update_ema(step=1)
    assert set(task.get_checkpoint_state()['state_dict']) == keys == set(unwrap(task.wrapped).state_dict())
    assert set(task.get_checkpoint_state(ema=True)['state_dict_ema']) == keys
    for copied in (copy.deepcopy(task.wrapped), pickle.loads(pickle.dumps(task.wrapped))):
        assert copied.multimix.teacher is None and task.wrapped.multimix.teacher is not None
    out = task(images, target)['loss']
    out.backward()
    assert all(p.grad is None for p in task.get_eval_model(ema=True).parameters())


def test_gradients_come_from_the_student_alone() -> None:
    net, images, target = build('resnet')
    teacher, _, _ = build('resnet')
    teacher.train()
    model = quiet_wrap(net, 'dense', teacher=teacher, teacher_start=0)
    assert not teacher.training
    statistics = {k: v.clone() for k, v in teacher.state_dict().items()}
    model(images, target).loss.backward()
    assert all(p.grad is None for p in teacher.parameters()) and all(p.grad is not None for p in net.parameters())
    assert all(torch.equal(v, teacher.state_dict()[k]) for k, v in statistics.items())


def test_under_autocast_and_compiled() -> None:
    net, images, target = build('resnet')
    teacher, _, _ = build('resnet')
    for reading in ('targets', 'logits'):
        model = quiet_wrap(copy.deepcopy(net), 'dense', teacher=teacher, teacher_start=0, teacher_reading=reading,
                           input_size=(3, 64, 64))
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert model(images, target).loss.dtype == torch.float32
    lam = sample_lam(20, model.head_info.positions, 6, 0.5)  # the loss alone compiles in both: tests/mixing
    want = model(images, target, lam=lam).loss
    got = torch.compile(model, backend='eager')(images, target, lam=lam).loss
    torch.testing.assert_close(got, want)


def test_accumulated_in_halves_is_the_mean_of_the_halves() -> None:
    """A teacher asks for nothing across batches: each is taught for itself."""
    net, images, target = build('vit averaged')
    model = quiet_wrap(net, 'multimix', prob=0, teacher=lambda x: x.flatten(1)[:, :5], teacher_start=0)
    whole = model(images, target).loss
    halves = [model(images[half], target[half]).loss for half in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(whole, torch.stack(halves).mean())


def test_errors() -> None:
    net, images, target = build('resnet')
    with pytest.raises(SettingError, match='The teacher has 7 classes, but the model has 5'):
        quiet_wrap(net, 'dense', teacher=timm.create_model('test_resnet', num_classes=7))
    plain = quiet_wrap(net, 'dense')
    with pytest.raises(SettingError, match='the settings have no teacher'):
        plain.set_teacher(same)
    with pytest.raises(SettingError, match='but it must be a network'):
        quiet_wrap(net, 'dense', teacher='ema').set_teacher('resnet18')  # type: ignore[arg-type]
    wrong = quiet_wrap(net, 'dense', teacher=lambda images: None, teacher_start=0)
    with pytest.raises(SettingError, match='gave a NoneType, but it must give logits'):
        wrong(images, target)
    narrow = quiet_wrap(net, 'dense', teacher=lambda images: images.flatten(1)[:, :3], teacher_start=0)
    with pytest.raises(SettingError, match=r'teacher are \(6, 3\), but to fit the batch'):
        narrow(images, target)
    late = quiet_wrap(net, 'dense', teacher='resnet18', teacher_start=0.9)
    late.set_progress(0)
    with pytest.raises(SettingError, match=r'there is no network to ask: model.set_teacher\(network\)'):
        late(images, target)  # on the first step, not after nine tenths of the training
    assert late.eval()(images, target).loss.isfinite() and not late.policy.counts
    for settings in (dict(balance=1.0), dict(teacher='ema', teacher_reading='logits'),
                     dict(teacher='ema', teacher_at='position')):
        with pytest.warns(UserWarning, match='has no effect: prob .* is 0, and embeddings are never mixed'):
            MultiMixConfig('dense', prob=0, **settings)  # type: ignore[arg-type]
    for settings, says in ((dict(teacher_weight=0.5), 'there is no teacher'),
                           (dict(teacher='ema', teacher_at='position', mode='multimix'), 'only --multimix dense has'),
                           (dict(teacher='hf-hub:a/b', teacher_at='position'), "only teacher 'ema' is known"),
                           (dict(teacher='ema', teacher_weight=0.0), 'teacher_weight .* must be above 0'),
                           (dict(teacher='ema', teacher_reading='logits', attention_detach=False), 'as a constant'),
                           (dict(teacher='ema', teacher_start=0.5, teacher_start_epoch=1), 'give only one')):
        with pytest.raises(SettingError, match=says):
            MultiMixConfig(**settings)  # type: ignore[arg-type]
    starts = {MultiMixConfig('dense', teacher=name).teacher_start for name in ('resnet18', 'given')}
    assert starts == {0.0} and MultiMixConfig('dense', teacher='ema').teacher_start == 0.5
    assert MultiMixConfig('dense', teacher='resnet18', teacher_start=0.2).teacher_start == 0.2
    assert MultiMixConfig('dense', teacher='resnet18', teacher_start_epoch=2).teacher_start is None
    config = MultiMixConfig('dense', teacher='ema', teacher_start_epoch=2)
    assert MultiMixConfig.from_dict(config.to_dict()) == config and config.teacher_start is None
    assert not any(name.startswith('teacher') for name in MultiMixConfig('dense').to_dict())
