"""The batch norms of a model, and `--bn-eval`, with which their statistics stay."""
from __future__ import annotations

import argparse
from typing import Optional

import torch.nn as nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..runs.settings import starts_pretrained


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """All of a model, whatever their number of dimensions."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def keep_statistics(model: nn.Module) -> None:
    """Have batch norms use the statistics that they have, and keep them, until the next `train()`."""
    for norm in batch_norms(model):
        norm.eval()


def bn_note(args: argparse.Namespace, model: nn.Module) -> Optional[str]:
    """A sentence for a model that --bn-eval does nothing to, or no good."""
    if not args.bn_eval:
        return None
    if not starts_pretrained(vars(args)):
        return ('--bn-eval is for pretrained weights, but the training starts from random ones. Add --pretrained, or '
                '--no-bn-eval.')
    if batch_norms(model) or args.recipe:  # a recipe is for any network
        return None
    return f'{args.model} has no batch norms, so --bn-eval does nothing.'
