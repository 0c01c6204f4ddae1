"""What a trained model can do: one function per table, each for any nn.Module. `evaluate.py` runs them on checkpoints.

    from timm_multimix import evaluate
    print(evaluate.robustness(model, loader))
"""
from .accuracy import accuracy
from .attention import attention
from .calibration import calibration
from .collect import Outputs, collect
from .embedding import embedding
from .hull import hull
from .load import Checkpoint, load_checkpoint
from .ood import ood
from .robustness import robustness
from .table import Table, Value
from .transfer import transfer

__all__ = [
    'Checkpoint', 'Outputs', 'Table', 'Value', 'accuracy', 'attention', 'calibration', 'collect', 'embedding', 'hull',
    'load_checkpoint', 'ood', 'robustness', 'transfer',
]
