"""Networks of sequences, wrapped by their parts: texts of unlike lengths, and series."""
from __future__ import annotations

import math

import pytest
import torch
import torch.nn as nn
from torch import Tensor

import timm_multimix
from timm_multimix import Parts, SettingError, sample_lam
from timm_multimix.heads import description
from timm_multimix.mixing import extensions, reference

PADDING = 0


class Text(nn.Module):
    """Words → mean of what was made of those that are there → a norm → classes."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 5)

    def encode(self, ids: Tensor) -> Tensor:
        return self.layer(self.words(ids), src_key_padding_mask=ids == PADDING)  # type: ignore[no-any-return]

    def pool(self, f: Tensor, mask: Tensor) -> Tensor:
        return self.norm((f * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))  # type: ignore[no-any-return]

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(self.pool(self.encode(ids), ids != PADDING))  # type: ignore[no-any-return]


TEXT = Parts(lambda net, ids: net.encode(ids), lambda net, f, mask: net.pool(f, mask), 'fc', 'NLC',
             mask=lambda net, ids: ids != PADDING, example=torch.ones(1, 6, dtype=torch.long))


def texts() -> tuple[Tensor, Tensor]:
    ids = torch.randint(1, 30, (5, 7))
    return ids.masked_fill(torch.arange(7) >= torch.tensor([[7], [2], [4], [1], [6]]), PADDING), torch.arange(5)


@pytest.mark.parametrize('attention', ['gap', 'cam', 'uniform'])
def test_it_is_the_equations_of_the_words_that_are_there(attention: str) -> None:
    net = Text().double()
    model = timm_multimix.wrap(net, 'dense', preset='embeddings', parts=TEXT, attention=attention)
    ids, y = texts()
    mask, lam = ids != PADDING, sample_lam(40, 7, 5, 0.5, dtype=torch.float64)
    out = model(ids, y, lam=lam)
    assert torch.equal(out.logits, net(ids)) and out.mixed == 'embeddings'

    z = net.norm(net.encode(ids))  # of a single word, the mean is itself
    W, Y = net.fc.weight, torch.eye(5).double()
    if attention == 'cam':
        a = torch.zeros_like(z[..., 0])
        for b in range(5):
            a[b, mask[b]] = reference.l1_relu(reference.cam_scores(z[b:b + 1, mask[b]], Y[b:b + 1], W))[0].detach()
    else:
        a = extensions.masked_maps(
            lambda z: reference.l1_relu(reference.gap_scores(z)) if attention == 'gap' else
            torch.full_like(z[..., 0], 1 / z.shape[1]), z, mask).detach()
    mixed = extensions.dense_multimix_loss(z, Y, lam, a, W, net.fc.bias, mask=mask)
    clean = nn.functional.cross_entropy(net(ids), y)
    torch.testing.assert_close(out.loss, (mixed + clean) / 2)

    ours = torch.autograd.grad(out.loss, list(net.parameters()))
    theirs = torch.autograd.grad((mixed + clean) / 2, list(net.parameters()))
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other)
    assert not ours[0][PADDING].any()  # the word that is none


def test_more_padding_changes_nothing() -> None:
    net = Text().double()
    model = timm_multimix.wrap(net, 'dense', preset='embeddings', parts=TEXT)
    ids, y = texts()
    lam = sample_lam(20, 7, 5, 0.5, dtype=torch.float64)
    want = model(ids, y, lam=lam)
    longer = torch.cat([ids, torch.full((5, 3), PADDING)], 1)
    got = model(longer, y, lam=torch.cat([lam, sample_lam(20, 3, 5, dtype=torch.float64)], 1))
    torch.testing.assert_close(got.loss, want.loss)
    torch.testing.assert_close(got.signal, want.signal)


def test_it_trains_and_is_plain_afterwards() -> None:
    net = Text()
    model = timm_multimix.wrap(net, 'dense', preset='embeddings', parts=TEXT, n=50)
    ids, y = texts()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        model(ids, y).loss.backward()
        optimizer.step()
    model.eval()
    assert float(model(ids, y).loss.detach()) < 0.5 < math.log(5)
    assert timm_multimix.unwrap(model) is net and model.policy.counts['embeddings'] == 40


class Series(nn.Module):
    """Twelve coefficients over time → a convolution → the mean over time → classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv1d(12, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().mean(2))  # type: ignore[no-any-return]


SERIES = Parts(lambda net, x: net.conv(x).relu().transpose(1, 2), lambda net, f: f.mean(1), 'fc', 'NLC',
               example=torch.zeros(1, 12, 9))


def test_series_without_a_mask() -> None:
    model = timm_multimix.wrap(Series(), 'dense', preset='embeddings', parts=SERIES)
    x = torch.randn(6, 12, 15)
    out = model(x, torch.arange(6) % 4)
    assert out.mixed == 'embeddings' and torch.allclose(out.logits, model(x))


def test_what_does_not_fit() -> None:
    for net, parts in ((Text(), TEXT), (Series(), SERIES)):
        with pytest.raises(SettingError, match='preset=.embeddings.'):
            timm_multimix.wrap(net, 'dense', parts=parts)  # it would mix word ids
    with pytest.raises(SettingError, match='example of Parts is'):
        Parts(TEXT.features, TEXT.embed, 'fc', example=torch.ones(2, 3))
    with pytest.raises(SettingError, match='mask of Parts is'):
        Parts(TEXT.features, TEXT.embed, 'fc', mask=3)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match='example='):
        timm_multimix.wrap(Text(), 'dense', preset='embeddings',
                           parts=Parts(TEXT.features, TEXT.embed, 'fc', 'NLC', mask=TEXT.mask))
    wrong = Parts(TEXT.features, TEXT.embed, 'fc', 'NLC', mask=lambda net, ids: ids, example=TEXT.example)
    with pytest.raises(SettingError, match='mask must be bool'):
        timm_multimix.wrap(Text(), 'dense', preset='embeddings', parts=wrong)(*texts())


def test_a_network_with_a_mask_is_mixed_at_the_embedding_only() -> None:
    """Behind another layer, a mixture would be masked as if it were one of its examples."""
    with pytest.raises(SettingError, match="layer is 'layer', but .* has a mask"):
        timm_multimix.wrap(Text(), 'multimix', preset='manifold', layer='layer', parts=TEXT)


def test_words_are_not_mixed() -> None:
    ids, y = texts()
    model = timm_multimix.wrap(Text(), 'multimix', preset='regmixup', parts=TEXT)
    with pytest.raises(SettingError, match="layer 'input' mixes numbers, and these are torch.int64"):
        model(ids, y)


def test_a_description_is_of_the_example() -> None:
    model = timm_multimix.wrap(Text(), 'dense', preset='embeddings', parts=TEXT)
    found = str(description(model))
    assert 'input 6, ' in found and 'LayerNorm' in found
