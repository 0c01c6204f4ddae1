"""What a trained model can do: one function per table, each for any nn.Module. `evaluate.py` runs them on checkpoints.

    from timm_multimix import evaluate
    print(evaluate.robustness(model, loader))
"""
from .detection.transfer import transfer
from .load import Checkpoint, load_checkpoint
from .outputs import Outputs, collect
from .table import Table, Value
from .tables.accuracy import accuracy
from .tables.attention import attention
from .tables.calibration import calibration
from .tables.embedding import embedding
from .tables.hull import hull
from .tables.ood import ood
from .tables.robustness import robustness

__all__ = [
    'Checkpoint', 'Outputs', 'Table', 'Value', 'accuracy', 'attention', 'calibration', 'collect', 'embedding', 'hull',
    'load_checkpoint', 'ood', 'robustness', 'transfer',
]
