"""A network that teaches: what it says of a step's images."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import torch
import torch.nn as nn
from timm.utils.model import unwrap_model
from torch import Tensor

from .config import EMA, MultiMixConfig
from .errors import SettingError
from .heads import look
from .mixing import TeacherTargets

Teacher = Callable[[Tensor], Tensor]


def check_teacher(teacher: Any, config: MultiMixConfig, num_classes: int, student: nn.Module) -> None:
    """Raise `SettingError` for what cannot teach a network of so many classes; put it into eval mode."""
    if config.teacher is None:
        raise SettingError('set_teacher: the settings have no teacher, so it would have no effect: '
                           "wrap(…, teacher='given').")
    if not callable(teacher):
        raise SettingError(f'The teacher is {teacher!r:.80}, but it must be a network: images (B, 3, H, W) to logits '
                           f'(B, {num_classes}).')
    if isinstance(teacher, nn.Module) and vars(unwrap_model(teacher)) is vars(student):  # wrapped or not
        raise SettingError('The teacher is the model itself, and teaching puts a network into eval mode: give its '
                           'average, such as timm.utils.ModelEmaV3(model), or another network.')
    theirs = getattr(unwrap_model(teacher), 'num_classes', num_classes)
    if theirs != num_classes:
        raise SettingError(f'The teacher has {theirs} classes, but the model has {num_classes}.')
    if isinstance(teacher, nn.Module):
        teacher.eval()
        head = _head(teacher)
        if config.teacher_at == 'position' and (head is None or head.head_info is None):
            raise SettingError("teacher_at 'position' (--multimix-teacher-at) needs a teacher that is wrapped for "
                               "'dense' itself. Use 'image'.")


def check_there(teacher: Optional[Teacher], config: MultiMixConfig) -> None:
    """Raise `SettingError` where the settings have a teacher and there is no network: on the first step of a training,
    not when the teacher's time has come."""
    if config.teacher is not None and teacher is None:
        how = ('average the weights (--model-ema; task.setup_ema; or model.set_teacher(ModelEmaV3(model)))'
               if config.teacher == EMA else 'model.set_teacher(network)')
        raise SettingError(f'teacher is {config.teacher!r}, but there is no network to ask: {how}.')


@torch.compiler.disable
@torch.no_grad()
def taught(teacher: Teacher, config: MultiMixConfig, images: Tensor) -> tuple[TeacherTargets, TeacherTargets]:
    """What a teacher says of the images, for the clean term and for the mixed one.

    Raises:
        SettingError: it gives no logits.
    """
    if isinstance(teacher, nn.Module) and teacher.training:
        teacher.eval()
    if config.teacher_view == 'flip':
        if images.ndim != 4:
            raise SettingError(f"teacher_view 'flip' (--multimix-teacher-view) is of images (B, C, H, W), but these "
                               f"are {tuple(images.shape)}: use 'same'.")
        images = images.flip(-1)
    dense: Optional[Tensor] = None
    if config.teacher_at == 'position':
        head = _head(teacher)
        logits, _, dense, _ = look(head.timm_adapter, head.head_info, images)
    else:
        logits = teacher(images)
    if not isinstance(logits, Tensor):
        raise SettingError(f'The teacher gave a {type(logits).__name__}, but it must give logits (B, C).')

    def said(logits: Tensor) -> TeacherTargets:
        return TeacherTargets(logits.detach().float() if logits.dtype.itemsize < 4 else logits.detach(),
                              config.teacher_weight, config.teacher_temperature, config.teacher_reading)

    clean = said(logits)
    return clean, clean if dense is None else said(dense)


def _head(teacher: Any) -> Any:
    """How a wrapped teacher ends; None of another network."""
    return getattr(unwrap_model(teacher), 'multimix', None)
