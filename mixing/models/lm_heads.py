"""Tests by trial whether a model's LM head is one matrix product.

The layers of a model do not tell: its `compute_logits` may apply a norm or a cap of its own. So it
is run once on random hidden states before anything relies on its being linear.

Shapes: D hidden width, V vocabulary, V_r rows of the output matrix on this rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import (
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)

logger = init_logger(f"vllm.{__name__}")

Logits = Callable[[torch.Tensor], torch.Tensor | None]
"""Hidden states [N, D] to logits [N, V]; None on ranks that do not gather logits."""

_FINEST = 2**-10
"""Relative rounding error of float32 factors on a GPU (TensorFloat-32)."""


@dataclass(frozen=True)
class PlainHead:
    """logits = scale * (weight @ hidden), and nothing else."""

    weight_VD: torch.Tensor
    """[V_r, D] with the vocabulary's padding, so that a GPU reads rows of logits 128 bits at a
    time."""
    scale: float
    is_split: bool
    """True if the matrix has the rows of this rank only."""
    gather: Logits
    """Joins all ranks' [N, V_r] side by side; the identity on a single rank."""


def hidden_width(model: Any, vllm_config: VllmConfig) -> int:
    """Width of the hidden states that a model gives to its LM head.

    Models that project them on the way, as OPT with 350M parameters does, have another hidden size
    in their config.
    """
    head = getattr(model, "lm_head", None)
    if isinstance(head, VocabParallelEmbedding):
        return int(head.embedding_dim)
    return int(vllm_config.model_config.get_hidden_size())


def is_linear(
    compute_logits: Logits, hidden_size: int, *, dtype: torch.dtype, device: torch.device
) -> bool:
    """True if the logits of a weighted mean of hidden states are the weighted mean of the logits.

    Weights sum to 1, so a bias does no harm.
    """
    first_1D, second_1D = _probe(hidden_size, dtype, device)[:, None]
    mean_1D = 0.25 * first_1D + 0.75 * second_1D
    logits_3V = compute_logits(torch.cat([first_1D, second_1D, mean_1D]))
    if logits_3V is None:
        return False
    first_V, second_V, mean_V = logits_3V.float()
    return _agree(mean_V, 0.25 * first_V + 0.75 * second_V, dtype)


def plain_heads(models: Sequence[Any], dtype: torch.dtype) -> list[PlainHead] | None:
    """The output matrices of loaded models, if one product per rank can mix their logits.

    Returns: None if a model's logits are more than the product with its matrix, in `dtype`, or if
      the ranks split the models' vocabularies at different places.
    """
    heads = [_plain_head(model, dtype) for model in models]
    present = [head for head in heads if head is not None]
    if len(present) < len(heads):
        return None
    if (
        any(head.is_split for head in present)
        and len({head.weight_VD.shape[0] for head in present}) > 1
    ):
        return None
    return present


def _plain_head(model: Any, dtype: torch.dtype) -> PlainHead | None:
    """The model's head; None if it has a soft-cap, norm or bias, is quantised or of another dtype,
    or has other names than vLLM's usual ones."""
    head = getattr(model, "lm_head", None)
    processor = getattr(model, "logits_processor", None)
    if not isinstance(head, VocabParallelEmbedding) or not isinstance(processor, LogitsProcessor):
        return None
    looks_plain = (
        isinstance(head.quant_method, UnquantizedEmbeddingMethod)
        and getattr(head, "bias", None) is None
        and head.parallel_group is None
        and head.num_added_embeddings == 0
        and head.weight.dtype == dtype
        and processor.soft_cap is None
        and not processor.logits_as_input
        and processor.head_dtype in (None, dtype)
    )
    if not looks_plain:
        return None
    is_split = head.tp_size > 1
    gather = processor._gather_logits if is_split else lambda rows: rows
    plain = PlainHead(head.weight, processor.scale, is_split, gather)
    probe_2D = _probe(head.weight.shape[1], dtype, head.weight.device)
    came = model.compute_logits(probe_2D)
    product = plain.gather(plain.scale * (probe_2D @ plain.weight_VD.T))
    if came is None or product is None:
        return None
    if _agree(came, product[:, : processor.org_vocab_size], dtype):
        return plain
    logger.info(
        "The LM head of %s is more than one matrix product: every policy's logits are mixed.",
        type(model).__name__,
    )
    return None


def _probe(hidden_size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Random hidden states [2, D], equal on all ranks and large enough for a cap to show."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    normal_2D = torch.randn((2, hidden_size), generator=generator, device="cpu")
    return (8 * normal_2D).to(dtype).to(device)


def _agree(came: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """True if two tensors are equal up to rounding. Equal infinities agree; NaN never does."""
    came, expected = came.float(), expected.float()
    error = torch.where(came == expected, 0.0, came - expected).norm()
    size = expected[expected.isfinite()].norm()
    return bool(error <= 8 * max(torch.finfo(dtype).eps, _FINEST) * size)
