"""Triton's interpreter multiplies in float32, whatever it is asked for. Here it cuts to TF32, as tensor cores do. And
sticks are drawn however little there is to mix, so that small examples test them."""
from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from timm_multimix.mixing.engines import stream


def cut(x: np.ndarray) -> np.ndarray:
    """As the tensor cores take a float32 for a TF32: without its last 13 bits."""
    return (x.view(np.uint32) & np.uint32(0xffffe000)).view(np.float32)


@pytest.fixture(autouse=True, scope='session')
def tensor_cores() -> None:
    if os.environ.get('TRITON_INTERPRET') != '1' or find_spec('triton') is None:
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle
    usual = InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, *more: Any) -> Any:
        if not str(input_precision).lower().endswith('tf32') or a.data.dtype != np.float32:
            return usual(self, a, b, d, input_precision, *more)
        a, b = (TensorHandle(cut(np.ascontiguousarray(x.data)), x.dtype) for x in (a, b))
        return usual(self, a, b, d, input_precision, *more)

    InterpreterBuilder.create_dot = create_dot


@pytest.fixture(autouse=True, scope='package')
def sticks_for_few() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, 'FEW', 0)
        yield
