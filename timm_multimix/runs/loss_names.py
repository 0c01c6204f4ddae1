"""`--loss` and `--loss-pos-weight`, by which timm ≥ 1.0.31 says what `--bce-loss` and `--bce-pos-weight` said."""
from __future__ import annotations

import warnings
from typing import Any

from ..errors import SettingError, nearest

LOSSES = ('ce', 'bce', 'asl', 'poly', 'jsd', 'twoway', 'zlpr', 'db')  # timm.loss.create_classification_loss
_WHY = 'embeddings are mixed with cross-entropy or binary cross-entropy, so cross-entropy it is'
NAMES = {'loss': 'bce_loss', 'loss_pos_weight': 'bce_pos_weight'}


def translated(settings: dict[str, Any], where: str = '') -> dict[str, Any]:
    """The same settings in the older names, which both mean here: `loss: bce` is `bce_loss: true`.

    Args:
        settings: those of a YAML, or of the command line; not changed.
        where: the YAML's path and a colon, for messages; '' of flags.

    Raises:
        SettingError: no such loss, or two that contradict each other.
    """
    found = {name: value for name, value in settings.items() if name not in NAMES}
    loss, weight = settings.get('loss'), settings.get('loss_pos_weight')
    loss_name, weight_name = (f'{where} {name}' if where else f'--{name.replace("_", "-")}' for name in NAMES)
    if loss:
        if loss not in LOSSES:
            raise SettingError(f'{loss_name} is {loss!r}, but it is one of {", ".join(LOSSES)}.'
                               f'{nearest(str(loss), LOSSES)}')
        if loss != 'bce' and settings.get('bce_loss'):
            raise SettingError(f'{loss_name} is {loss!r} and bce_loss is on: give only one.')
        if loss not in ('ce', 'bce'):
            warnings.warn(f'{loss_name} is {loss!r} in timm, but it is not taken here: {_WHY}.', stacklevel=3)
        found['bce_loss'] = loss == 'bce'
    if weight not in (None, '', []):
        try:
            found['bce_pos_weight'] = float(weight)
        except (TypeError, ValueError):
            warnings.warn(f'{weight_name} is {weight!r} in timm, but only one number is taken here, so it has no '
                          f'effect. --class-weight weighs classes by themselves, in cross-entropy.', stacklevel=3)
    return found
