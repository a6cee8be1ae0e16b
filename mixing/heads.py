"""When a model's output matrix can be multiplied directly instead of through its own layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import (
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)


@dataclass(frozen=True)
class PlainHead:
    """logits = scale * (weight @ hidden), and nothing else."""

    weight_VD: torch.Tensor
    scale: float


def plain_head(model: Any, dtype: torch.dtype) -> PlainHead | None:
    """The output matrix of a loaded model on one rank, if its logits are that product alone.

    None for a soft-cap, a bias, a quantised, sharded or differently typed head, or a model that
    keeps its head under other names than vLLM's usual ones.
    """
    head = getattr(model, "lm_head", None)
    processor = getattr(model, "logits_processor", None)
    if not isinstance(head, VocabParallelEmbedding) or not isinstance(processor, LogitsProcessor):
        return None
    is_plain = (
        isinstance(head.quant_method, UnquantizedEmbeddingMethod)
        and getattr(head, "bias", None) is None
        and head.tp_size == 1
        and head.weight.dtype == dtype
        and processor.soft_cap is None
        and not processor.logits_as_input
        and processor.head_dtype in (None, dtype)
    )
    if not is_plain:
        return None
    return PlainHead(weight_VD=head.weight[: processor.org_vocab_size], scale=processor.scale)
