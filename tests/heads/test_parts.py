"""Networks that are not timm's, wrapped by their parts."""
from __future__ import annotations

import copy

import pytest
import torch
import torch.nn as nn
import torchvision

import timm_multimix
from timm_multimix import MultiMixTask, Parts, SettingError, sample_lam
from timm_multimix.heads import description
from timm_multimix.mixing import reference

RESNET = Parts(
    features=lambda net, x: net.layer4(net.layer3(net.layer2(net.layer1(net.maxpool(net.relu(net.bn1(
        net.conv1(x)))))))),
    embed=lambda net, f: net.avgpool(f).flatten(1),
    classifier='fc')


class Tokens(nn.Module):
    """A network with a token in front, a norm behind the pool and channels last: nothing here is timm's."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.front = nn.Parameter(torch.randn(1, 1, 8))
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 5)

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        z = self.patches(x).flatten(2).transpose(1, 2)
        return torch.cat([self.front.expand(len(z), -1, -1), z], 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(self.tokens(x)[:, 1:].mean(1)))  # type: ignore[no-any-return]


TOKENS = Parts(lambda net, x: net.tokens(x), lambda net, f: net.norm(f[:, 1:].mean(1)), 'out', 'NLC', 1)


def test_torchvision_is_the_paper() -> None:
    net = torchvision.models.resnet18(num_classes=5).double().eval()
    images, target = torch.randn(4, 3, 64, 64).double(), torch.tensor([0, 1, 2, 4])
    twin = copy.deepcopy(net)
    model = timm_multimix.wrap(net, 'dense', parts=RESNET, clean_weight=0.0, input_size=(3, 64, 64))
    assert torch.equal(model(images), twin(images)) and model.num_classes == 5
    assert list(model.state_dict()) == list(twin.state_dict()) and timm_multimix.unwrap(model) is net
    lam = sample_lam(10, 4, 4, 0.5, dtype=torch.float64)
    out = model(images, target, lam=lam)
    out.loss.backward()
    Z = RESNET.features(twin, images).flatten(2).transpose(1, 2)
    a = reference.l1_relu(reference.gap_scores(Z.detach()))
    want = reference.dense_multimix_loss(Z, torch.eye(5).double()[target], lam, a, twin.fc.weight, twin.fc.bias)
    want.backward()
    torch.testing.assert_close(out.loss, want, rtol=1e-10, atol=0)
    for p, q in zip(net.parameters(), twin.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-10)


def test_tokens_behind_a_norm() -> None:
    net = Tokens().double()
    model = timm_multimix.wrap(net, 'dense', parts=TOKENS, input_size=(3, 16, 16))
    images, target = torch.randn(6, 3, 16, 16).double(), torch.arange(6) % 5
    lam = sample_lam(10, 16, 6, 0.5, dtype=torch.float64)
    out = model(images, target, lam=lam)
    torch.testing.assert_close(out.logits, net(images))
    Z = net.norm(net.tokens(images)[:, 1:])
    a = reference.l1_relu(reference.gap_scores(Z))
    want = reference.dense_multimix_loss(Z, torch.eye(5).double()[target], lam, a, net.out.weight, net.out.bias)
    torch.testing.assert_close(out.signal['loss_mixed'], want.detach(), rtol=1e-10, atol=0)
    assert 'behind 1 other token' in str(description(model, (3, 16, 16)))


def test_copies_run_their_own_layers_and_tasks_take_them() -> None:
    model = timm_multimix.wrap(Tokens(), 'dense', parts=TOKENS, input_size=(3, 16, 16), effective=1.5, mixup=1.0)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for p in copied.parameters():
            p.zero_()
    images, target = torch.randn(4, 3, 16, 16), torch.arange(4)
    assert not copied(images, target).logits.any() and model(images, target).logits.any()
    task = MultiMixTask(model).train()
    task.setup_ema(decay=0.5)
    loss = task(images, target)['loss']
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None for n, p in model.named_parameters() if n != 'front')


@pytest.mark.parametrize('change, words', [
    (dict(classifier='head'), "has no such layer. Its last ones: .*fc"),
    (dict(classifier='layer4'), 'the last linear layer itself'),
    (dict(layout='NCWH'), 'NCHW, NHWC, NLC'), (dict(embed='avgpool'), 'must be a function')])
def test_bad_parts(change: dict, words: str) -> None:
    given = {'features': RESNET.features, 'embed': RESNET.embed, 'classifier': 'fc', **change}
    with pytest.raises(SettingError, match=words):
        timm_multimix.wrap(torchvision.models.resnet18(), 'dense', parts=Parts(**given), input_size=(3, 32, 32))


def test_others_are_told_about_parts() -> None:
    with pytest.raises(SettingError, match=r'parts=Parts\(…\)'):
        timm_multimix.wrap(torchvision.models.resnet18(), 'dense')
    model = timm_multimix.wrap(torchvision.models.resnet18(), 'multimix', parts=RESNET)
    with pytest.raises(SettingError, match="replace its layer 'fc'"):
        model.reset_classifier(3)
