"""The batch norms of a model, and `--bn-eval`, with which their statistics stay."""
from __future__ import annotations

import argparse
from typing import Optional

import torch.nn as nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """All of a model, whatever their number of dimensions."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def keep_statistics(model: nn.Module) -> None:
    """Have batch norms use the statistics that they have, and keep them, until the next `train()`."""
    for norm in batch_norms(model):
        norm.eval()


def bn_note(args: argparse.Namespace, model: nn.Module) -> Optional[str]:
    """A sentence for a model that --bn-eval does nothing to."""
    if not args.bn_eval or batch_norms(model):
        return None
    return f'{args.model} has no batch norms, so --bn-eval does nothing.'
