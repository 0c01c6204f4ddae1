"""Several heads on one embedding, mixed with one Λ: a class for each image, and labels that may hold together."""
from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.mixing.test_loss import values_and_grads
from tests.models import build, quiet_wrap
from timm_multimix import mixed_cross_entropy, sample_lam
from timm_multimix.mixing import attention, extensions, reference


@given(seed=st.integers(0, 2**31), dense=st.booleans())
@settings(max_examples=100, deadline=None)
def test_two_heads_equal_the_equations(seed: int, dense: bool) -> None:
    """The sum of the two literal losses of the same mixed embeddings, its gradient in the embedding and both heads."""
    g = torch.Generator().manual_seed(seed)
    B, P, D, C, A, N = (int(torch.randint(low, high, (), generator=g)) for low, high in (
        (1, 8), (1, 5), (1, 7), (2, 7), (1, 5), (1, 12)))
    P = P if dense else 1

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    Z, W, beta, V, gamma = normal(B, P, D), normal(C, D), normal(C), normal(A, D), normal(A)
    y, labels = torch.randint(0, C, (B,), generator=g), torch.randint(0, 2, (B, A), generator=g)
    lam = sample_lam(N, P, B, 0.3, g, dtype=torch.float64)
    a = attention(Z) if dense else None

    def fast(Z: Tensor, W: Tensor, beta: Tensor, V: Tensor, gamma: Tensor) -> Tensor:
        return (mixed_cross_entropy(Z @ W.t() + beta, y, lam, a)
                + mixed_cross_entropy(Z @ V.t() + gamma, labels, lam, a, binary=True))

    def literal(Z: Tensor, W: Tensor, beta: Tensor, V: Tensor, gamma: Tensor) -> Tensor:
        Y, many = torch.nn.functional.one_hot(y, C).double(), labels.double()
        if a is None:
            return (reference.multimix_loss(Z[:, 0], Y, lam[:, 0], W, beta)
                    + extensions.multimix_loss(Z[:, 0], many, lam[:, 0], V, gamma, binary=True))
        return (reference.dense_multimix_loss(Z, Y, lam, a, W, beta)
                + extensions.dense_multimix_loss(Z, many, lam, a, V, gamma, binary=True))

    given_ = Z, W, beta, V, gamma
    for got, want in zip(values_and_grads(fast, *given_), values_and_grads(literal, *given_)):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


def test_several_labels_to_an_image_through_wrap() -> None:
    """bce_loss with 0 and 1 for each label: the mixed and the clean term are those of the equations."""
    net, images, _ = build('resnet')
    labels = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1],
                           [0, 0, 0, 1, 0]])
    model = quiet_wrap(net.double(), 'multimix', bce_loss=True)
    lam = sample_lam(20, 1, 6, 0.5, dtype=torch.float64)
    out = model(images.double(), labels, lam=lam)
    eye = torch.eye(5, dtype=torch.float64)
    for signal, mixed in (('loss_mixed', lam[:, 0]), ('loss_clean', torch.eye(6, dtype=torch.float64))):
        want = extensions.multimix_loss(out.logits.detach(), labels.double(), mixed, eye, eye[0] * 0, binary=True)
        torch.testing.assert_close(out.signal[signal], want)
