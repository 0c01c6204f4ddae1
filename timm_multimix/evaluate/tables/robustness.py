"""Robustness to small changes of the images: FGSM, PGD, and AutoAttack where its package is installed."""
from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Optional

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ...errors import SettingError
from ...heads.positions import evaluating
from ..outputs import Loader, bar, check_target, device_of, logits_of
from ..table import Table, colour, legend_mark, panels, rows_of, save_figure, short

TITLE = 'Robustness'
ABOUT = """\
Share of images that are still classified rightly after the attack, in percent. All attacks are untargeted, white-box
and ℓ∞: no pixel moves by more than ε, in [0, 1] pixel space, with the model's normalisation inside what is attacked.
FGSM: one step of ε along the sign of the gradient of the cross-entropy (arXiv 1412.6572). PGD: random start in the ε
ball, then steps along the sign, each projected back; an image counts as right only if it is after every restart (arXiv
1706.06083). On the curve the step keeps its ratio to ε. The control moves every pixel by ±ε at random. Checks: accuracy
under PGD does not rise with ε, is near zero at the largest ε, is no higher than under FGSM or under the random control,
and gradients are not exactly zero; where one fails, the attack and not the model may be what is weak."""

NAMES = {'fgsm': 'FGSM', 'pgd': 'PGD', 'autoattack': 'AutoAttack'}
CURVE = tuple(x / 255 for x in (0.25, 0.5, 1, 2, 4, 8, 16, 32))
TOLERANCE = 1.0  # points by which a check may be off: attacks draw at random and images are finite


class PixelModel(nn.Module):
    """A model that takes images in [0, 1]: it normalises them itself.

    Args:
        model: takes normalised images (B, C, H, W).
        mean, std: of each channel, C numbers.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        for name, values in (('mean', mean), ('std', std)):
            self.register_buffer(name, torch.tensor(values, device=device_of(model)).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model((pixels - self.mean) / self.std)  # type: ignore[operator, no-any-return]

    def pixels(self, images: Tensor) -> Tensor:
        """Normalised images back as pixels in [0, 1].

        Raises:
            SettingError: they leave [0, 1], so they were normalised with other numbers.
        """
        pixels = images * self.std + self.mean  # type: ignore[operator]
        low, high = float(pixels.min()), float(pixels.max())
        if low < -1e-3 or high > 1 + 1e-3:
            raise SettingError(f'mean and std are {self.mean.flatten().tolist()} and '  # type: ignore[operator]
                               f'{self.std.flatten().tolist()}, but '  # type: ignore[operator]
                               f'with them the images have pixels from {low:.3g} to {high:.3g}, not 0 to 1: the loader '
                               f'normalises with other numbers.')
        return pixels.clamp(0, 1)  # type: ignore[no-any-return]


def gradient(model: nn.Module, pixels: Tensor, target: Tensor) -> Tensor:
    """Of each image's cross-entropy in its own pixels. The model's parameters get none."""
    with torch.enable_grad():
        pixels = pixels.detach().requires_grad_()
        loss = F.cross_entropy(model(pixels), target, reduction='sum')
        return torch.autograd.grad(loss, pixels)[0]


def fgsm(model: nn.Module, pixels: Tensor, target: Tensor, eps: float) -> Tensor:
    """x + ε · sign(∇ₓ cross-entropy), within [0, 1] (Goodfellow et al., arXiv 1412.6572).

    Args:
        model: takes pixels in [0, 1], in the mode it is to be attacked in.
        pixels: (B, C, H, W) in [0, 1].
        target: class indices (B,) to get away from.
        eps: ε, the largest change of a pixel.
    """
    return (pixels + eps * gradient(model, pixels, target).sign()).clamp(0, 1)


def pgd(
        model: nn.Module,
        pixels: Tensor,
        target: Tensor,
        eps: float,
        step: float,
        steps: int = 10,
        generator: Optional[torch.Generator] = None,
) -> Tensor:
    """x ← Π(x + step · sign(∇ₓ cross-entropy)), from a uniform random start in the ε ball (arXiv 1706.06083).

    Π projects on the ε ball around the image and on [0, 1]. One restart; the last iterate. Arguments as of `fgsm`.

    Args:
        step: size of a step, in pixel values.
        steps: how many.
        generator: of the random start, on the CPU.
    """
    start = torch.rand(pixels.shape, generator=generator).to(pixels) * 2 - 1
    low, high = (pixels - eps).clamp(min=0), (pixels + eps).clamp(max=1)
    moved = torch.clamp(pixels + eps * start, low, high)
    for _ in range(steps):
        moved = torch.clamp(moved + step * gradient(model, moved, target).sign(), low, high)
    return moved


def autoattack(model: nn.Module, pixels: Tensor, target: Tensor, eps: float, seed: int = 0) -> Tensor:
    """The standard ℓ∞ ensemble of Croce and Hein (arXiv 2003.01690), by its own package.

    Raises:
        SettingError: neither `autoattack` (the authors') nor `pyautoattack` can be imported, or fewer than 10 classes,
            which its targeted attacks need.
    """
    module = None
    for name in ('autoattack', 'pyautoattack'):
        try:
            module = importlib.import_module(name)
            break
        except ImportError:
            continue
    if module is None:
        raise SettingError("attacks has 'autoattack', but its package is not installed: "
                           'pip install git+https://github.com/fra31/auto-attack (or pip install pyautoattack).')
    with torch.no_grad():
        classes = model(pixels[:1]).shape[1]
    if classes < 10:
        raise SettingError(f"attacks has 'autoattack', but its targeted attacks need 10 classes and the model has "
                           f'{classes}: leave it out.')
    attack = module.AutoAttack(model, norm='Linf', eps=eps, seed=seed, device=pixels.device)
    attack.verbose = False
    moved = attack.run_standard_evaluation(pixels, target)
    return moved[0] if isinstance(moved, tuple) else moved  # pyautoattack gives their classes too


def robustness(
        model: nn.Module,
        loader: Loader,
        *,
        attacks: Sequence[str] = ('fgsm', 'pgd'),
        fgsm_eps: float = 8 / 255,
        pgd_eps: float = 4 / 255,
        step: float = 2 / 255,
        steps: int = 10,
        restarts: int = 1,
        curve: Sequence[float] = CURVE,
        mean: Optional[Sequence[float]] = None,
        std: Optional[Sequence[float]] = None,
        seed: int = 0,
        progress: bool = False,
) -> Table:
    """Accuracy under attack: at the settings of the MultiMix paper's table, and over ε.

    Args:
        model: any nn.Module that gives logits of normalised images.
        loader: of (images, target), normalised.
        attacks: of 'fgsm', 'pgd' and 'autoattack' (which takes minutes per hundred images even of a small model).
        fgsm_eps: ε of FGSM, in [0, 1] pixel space.
        pgd_eps: ε of PGD and of AutoAttack.
        step, steps, restarts: of PGD.
        curve: the ε of the curve under FGSM, PGD and the random control; empty for none.
        mean, std: that the loader normalises with; default those of the model's `pretrained_cfg`.
        seed: of random starts.

    Returns:
        A `Table`; data holds 'curve' and the 'checks'.

    Raises:
        SettingError: an unknown attack, settings that are not above 0, a normalisation that is unknown or does not
            fit the images, a missing package.
    """
    _check(attacks, fgsm_eps=fgsm_eps, pgd_eps=pgd_eps, step=step, steps=steps, restarts=restarts,
           **{f'curve[{i}]': eps for i, eps in enumerate(curve)})
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    mean, std = mean or cfg.get('mean'), std or cfg.get('std')
    if mean is None or std is None:
        raise SettingError('mean and std are not given, and the model has no pretrained_cfg that says how its images '
                           'are normalised: attacks need them to work in [0, 1].')
    device, generator = device_of(model), torch.Generator().manual_seed(seed)
    attacked = PixelModel(model, mean, std)
    curve = sorted(curve)
    plan = [(a, eps) for eps in curve for a in ('fgsm', 'pgd', 'random')]
    wanted = {'fgsm': fgsm_eps, 'pgd': pgd_eps, 'autoattack': pgd_eps}
    plan += [(a, wanted[a]) for a in attacks if (a, wanted[a]) not in plan]
    kept = dict.fromkeys(plan, 0)
    images_seen = right_seen = silent = 0
    with evaluating(model):
        for images, target, *_ in bar(loader, 'robustness', progress):
            check_target(target, logits_of(model, images[:1].to(device)).shape[1])
            pixels, target = attacked.pixels(images.to(device)), target.to(device)
            with torch.no_grad():
                right = attacked(pixels).argmax(1) == target
            images_seen += len(target)
            right_seen += int(right.sum())
            if not right.any():
                continue
            pixels, target = pixels[right], target[right]  # what is wrong already stays wrong
            silent += int((gradient(attacked, pixels, target).flatten(1) == 0).all(1).sum())
            for attack, eps in bar(plan, 'attacks on a batch', progress):
                kept[attack, eps] += int(_survives(attacked, attack, eps, pixels, target, step * eps / pgd_eps, steps,
                                                   restarts, generator, seed).sum())
    if not images_seen:
        raise SettingError('The loader holds no images.')
    share = {key: 100 * count / images_seen for key, count in kept.items()}
    clean = 100 * right_seen / images_seen
    rows = {'images': float(images_seen), 'no attack, %': clean}
    for a in attacks:
        rows[f'{NAMES[a]}, ε = {wanted[a] * 255:g}/255, %'] = share[a, wanted[a]]
    rows['zero gradient, % of right ones'] = 100 * silent / max(1, right_seen)
    found = {a: [clean] + [share[a, eps] for eps in curve] for a in ('fgsm', 'pgd', 'random')}
    checks = _checks(found, rows['zero gradient, % of right ones']) if len(curve) else {}
    notes = [f'Check failed: {name}.' for name, passed in checks.items() if not passed]
    if checks and not notes:
        notes = [f'All {len(checks)} checks of the attack passed.']
    return Table('robustness', rows_of(rows), {
        'curve': {'eps': [0.0, *curve], **found}, 'checks': checks,
        'settings': {'attacks': list(attacks), 'fgsm_eps': fgsm_eps, 'pgd_eps': pgd_eps, 'step': step, 'steps': steps,
                     'restarts': restarts, 'seed': seed}}, notes)


def _survives(model: nn.Module, attack: str, eps: float, pixels: Tensor, target: Tensor, step: float, steps: int,
              restarts: int, generator: torch.Generator, seed: int) -> Tensor:
    """Which images keep their class, (B,) bool."""
    right = torch.ones_like(target, dtype=torch.bool)
    for _ in range(restarts if attack == 'pgd' else 1):
        if attack == 'fgsm':
            moved = fgsm(model, pixels, target, eps)
        elif attack == 'pgd':
            moved = pgd(model, pixels, target, eps, step, steps, generator)
        elif attack == 'autoattack':
            moved = autoattack(model, pixels, target, eps, seed)
        else:
            noise = torch.rand(pixels.shape, generator=generator).to(pixels) - 0.5
            moved = (pixels + eps * noise.sign()).clamp(0, 1)
        with torch.no_grad():
            right &= model(moved).argmax(1) == target
    return right


def _checks(curve: dict[str, list[float]], silent: float) -> dict[str, bool]:
    """Whether the attack itself works; the names are what the report prints."""
    attacked, fgsm_, random = curve['pgd'], curve['fgsm'], curve['random']
    return {
        'accuracy under PGD falls with ε': all(b <= a + TOLERANCE for a, b in pairwise(attacked)),
        'accuracy under PGD is near zero (at most 5 %) at the largest ε': attacked[-1] <= 5,
        'PGD is no weaker than FGSM': all(a <= b + TOLERANCE for a, b in zip(attacked, fgsm_)),
        'PGD is no weaker than random changes': all(a <= b + TOLERANCE for a, b in zip(attacked, random)),
        'gradients are not exactly zero (for at most 1 % of the images)': silent <= 1,
    }


def _check(attacks: Sequence[str], **positive: float) -> None:
    for a in attacks:
        if a not in NAMES:
            raise SettingError(f'attacks has {a!r}, but there are {", ".join(NAMES)}.')
    for name, value in positive.items():
        if not value > 0 or (name in ('steps', 'restarts') and value != int(value)):
            raise SettingError(f'{name} is {value!r}, but it must be above 0'
                               f'{" and whole" if name in ("steps", "restarts") else ""}.')


def draw(tables: Mapping[str, Table], folder: Path) -> list[Path]:
    """Accuracy over ε."""
    curves = {name: table.data['curve'] for name, table in tables.items()}
    if all(len(c['eps']) < 2 for c in curves.values()):
        return []
    figure, [[axis]] = panels(1, 1, (8, 4))
    attacks = (('pgd', '-', 'PGD'), ('fgsm', '--', 'FGSM'), ('random', ':', 'random ±ε'))
    marker = {'-': {'marker': 'o', 'ms': 3.5}}
    for k, c in enumerate(curves.values()):
        eps = [255 * x for x in c['eps']]
        for attack, style, _ in attacks:
            axis.plot(eps, c[attack], style, color=colour(k), **marker.get(style, {}))
    axis.set_xscale('symlog', linthresh=min(255 * c['eps'][1] for c in curves.values()), linscale=0.5)
    ticks = sorted({255 * x for c in curves.values() for x in c['eps']})
    axis.set_xticks(ticks, [f'{x:g}' for x in ticks])
    axis.set_xticks([], minor=True)
    axis.set(xlabel='ε · 255 (largest change of a pixel)', ylabel='accuracy, %', ylim=(0, 100))
    axis.grid(alpha=0.25)
    handles = [legend_mark(color=colour(k)) for k in range(len(curves))]
    handles += [legend_mark(ls=style, color='0.4', **marker.get(style, {})) for _, style, _ in attacks]
    figure.legend(handles, [*map(short, curves), *(label for _, _, label in attacks)], frameon=False, fontsize=8,
                  loc='outside right center')
    return [save_figure(figure, folder / 'robustness.png')]
