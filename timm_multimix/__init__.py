"""MultiMix and Dense MultiMix for timm models (arXiv 2311.05538)."""
from . import models  # noqa: F401  # registers them with timm
from .config import MultiMixConfig
from .errors import SettingError
from .heads import Parts, describe
from .hub import from_pretrained, list_checkpoints, push_to_hub
from .huggingface import hf_loss
from .mixing import LamSampler, TeacherTargets, attention, mixed_cross_entropy, sample_lam
from .policy import MixingPolicy
from .stepping import MultiMixOutput
from .task import MultiMixTask
from .version import __version__
from .wrapper import MultiMixModel, unwrap, wrap

__all__ = [
    'LamSampler', 'MixingPolicy', 'MultiMixConfig', 'MultiMixModel', 'MultiMixOutput', 'MultiMixTask', 'Parts',
    'SettingError', 'TeacherTargets', '__version__', 'attention', 'describe', 'from_pretrained', 'hf_loss',
    'list_checkpoints', 'mixed_cross_entropy', 'push_to_hub', 'sample_lam', 'unwrap', 'wrap',
]
