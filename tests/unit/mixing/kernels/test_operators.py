"""The operators as torch checks them: schemas, shapes without memory, symbolic sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from prefmix.mixing.kernels.log_linear_mix import log_linear_mix
from prefmix.mixing.kernels.mix_lm_head import mix_lm_head
from prefmix.mixing.kernels.mixture_statistics import mixture_statistics
from prefmix.mixing.kernels.scaled_update import scaled_update
from support.kernels.cases import make_case
from support.kernels.head_cases import make_heads
from support.kernels.update_cases import make_update


def _mix(rows: int, dtype: torch.dtype) -> tuple[Any, ...]:
    case = make_case(40, dtype, rows=rows)
    caps_and_scales = [0.0, 30.0, 0.0], [1.0, 0.5, 1.0]
    return case.logits, case.weights_NM, [0, 1, 2], 45, *caps_and_scales, True, dtype


def _statistics(rows: int, dtype: torch.dtype) -> tuple[Any, ...]:
    case = make_case(40, dtype, rows=rows)
    caps_and_scales = [0.0, 30.0, 0.0], [1.0, 0.5, 1.0]
    return case.logits, case.weights_NM, case.tokens_N, [0, 1, 2], *caps_and_scales


def _head(rows: int, dtype: torch.dtype) -> tuple[Any, ...]:
    inputs = make_heads(16, 24, rows=rows, vocab=40, dtype=dtype)
    return inputs.hidden, inputs.heads, inputs.weights_NM, [0, 1], 45, [1.0, 0.5], None


def _update(rows: int, dtype: torch.dtype) -> tuple[Any, ...]:
    return make_update(rows, 32, 2, 16, dtype=dtype)


OPERATORS = {
    "log_linear_mix": _mix,
    "mixture_statistics": _statistics,
    "mix_lm_head": _head,
    "scaled_update": _update,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("name", OPERATORS)
def test_torch_finds_no_fault(name: str, rows: int, dtype: torch.dtype) -> None:
    """Results agree with the schema and the fake implementation, traced with symbolic sizes.

    Every member runs here, since torch's comparison does not take NaN for NaN.
    """
    torch.library.opcheck(getattr(torch.ops.prefmix, name).default, OPERATORS[name](rows, dtype))


def _logprobs(logits: list[torch.Tensor], weights_NM: torch.Tensor) -> torch.Tensor:
    return log_linear_mix(logits, weights_NM, soft_cap=[None, 30.0, None]).log_softmax(dim=-1)


def _surprise(
    logits: list[torch.Tensor], weights_NM: torch.Tensor, tokens_N: torch.Tensor
) -> torch.Tensor:
    found = mixture_statistics(logits, weights_NM, tokens_N)
    return found.kl_NM.sum(dim=1) - found.logprob_N


def _head_logprobs(
    hidden: list[torch.Tensor], heads: list[torch.Tensor], weights_NM: torch.Tensor
) -> torch.Tensor:
    return mix_lm_head(hidden, heads, weights_NM).log_softmax(dim=-1)


@pytest.mark.parametrize("name", OPERATORS)
def test_one_compilation_serves_every_batch(name: str) -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    def arguments(rows: int) -> tuple[Any, ...]:
        case, inputs = make_case(40, rows=rows), make_heads(16, 24, rows=rows)
        return {
            "log_linear_mix": (case.logits, case.weights_NM),
            "mixture_statistics": (case.logits, case.weights_NM, case.tokens_N),
            "mix_lm_head": inputs[:3],
            "scaled_update": make_update(rows, 32, 2, 16, dtype=torch.float32),
        }[name]

    function: Callable[..., torch.Tensor] = {
        "log_linear_mix": _logprobs,
        "mixture_statistics": _surprise,
        "mix_lm_head": _head_logprobs,
        "scaled_update": scaled_update,
    }[name]
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=count)
    for rows in (7, 5, 64):  # no other size is 7: torch takes equal sizes for one
        torch.testing.assert_close(compiled(*arguments(rows)), function(*arguments(rows)))
    assert len(graphs) == 1


def test_other_implementations_get_every_argument() -> None:
    """Torch leaves out arguments that are equal to a default."""
    for name in OPERATORS:
        schema = getattr(torch.ops.prefmix, name).default._schema
        assert not [each.name for each in schema.arguments if each.has_default_value()]
