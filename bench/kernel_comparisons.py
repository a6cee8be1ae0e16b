"""The contestants of `prefmix.bench.kernels`: each kernel, its torch fallback, and eager torch.

Shapes: N rows, M members, V vocabulary, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple, Protocol

import torch

from prefmix.mixing.kernels.log_linear_mix import log_linear_mix, log_linear_mix_torch
from prefmix.mixing.kernels.mix_lm_head import mix_lm_head, mix_lm_head_torch
from prefmix.mixing.kernels.mixture_statistics import mixture_statistics, mixture_statistics_torch
from prefmix.server.config.errors import CommandError

SLACK = 1e-5
"""Most by which an error may exceed that of eager torch, in nats."""

ALL = slice(None)


@dataclass(frozen=True, slots=True)
class Size:
    """One measurement's shape."""

    rows: int
    vocab: int
    members: int
    hidden: int
    dtype: torch.dtype
    device: torch.device

    def weights(self) -> torch.Tensor:
        """float32 [N, M] on the simplex, none of them zero."""
        return torch.rand(self.rows, self.members, device=self.device).add_(0.1).softmax(dim=1)

    def random(self, *shape: int, scale: float = 1.0) -> list[torch.Tensor]:
        """One normally distributed tensor of the dtype per member."""
        options: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        return [torch.randn(shape, **options).mul_(scale) for _ in range(self.members)]

    def logits(self) -> list[torch.Tensor]:
        """Logits per member, [N, V], of a size that is usual for models."""
        return self.random(self.rows, self.vocab, scale=4.0)

    @property
    def logits_bytes(self) -> int:
        return self.members * self.rows * self.vocab * self.dtype.itemsize


class Eager(Protocol):
    """Plain torch on some rows of an input."""

    def __call__(
        self, rows: list[int] | slice = ALL, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, ...]: ...


class Ways(NamedTuple):
    """The compared implementations, on the same input."""

    eager: Eager
    compiled: Callable[[], Any]
    """Eager's function under torch.compile, compiled at the first call."""
    fallback: Callable[[], Any]
    kernel: Callable[[], Any]
    """The registered operator; for a GPU only."""


def eager_mix(
    logits: list[torch.Tensor], weights: torch.Tensor, *, dtype: torch.dtype
) -> tuple[torch.Tensor]:
    """Stacks the logits, converts them to `dtype`, multiplies and adds up."""
    terms = torch.stack(logits, dim=1).to(dtype) * weights[:, :, None].to(dtype)
    return (terms.sum(dim=1),)


def eager_statistics(
    logits: list[torch.Tensor], weights: torch.Tensor, tokens: torch.Tensor, *, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """The definitions of `MixtureStatistics` in plain torch, in the order of its fields."""
    policies = torch.stack(logits, dim=1).to(dtype).log_softmax(dim=-1)
    product = (policies * weights[:, :, None].to(dtype)).sum(dim=1)
    log_partition = product.logsumexp(dim=-1)
    log_p = product - log_partition[:, None]
    p = log_p.exp()
    entropy = -(p * log_p).sum(dim=-1)
    logprob = log_p.gather(1, tokens[:, None])[:, 0]
    kl = (p[:, None] * (log_p[:, None] - policies)).sum(dim=-1)
    of_token = policies.gather(2, tokens[:, None, None].expand(-1, len(logits), 1))[..., 0]
    return log_partition, entropy, logprob, kl, of_token, of_token == policies.amax(dim=-1)


def eager_head(
    hidden: list[torch.Tensor],
    heads: list[torch.Tensor],
    weights: torch.Tensor,
    *,
    dtype: torch.dtype,
) -> tuple[torch.Tensor]:
    """M products in the inputs' own dtype (float64 for truth), then `eager_mix`."""
    own = torch.float64 if dtype == torch.float64 else heads[0].dtype
    logits = [h.to(own) @ head.to(own).T for h, head in zip(hidden, heads, strict=True)]
    return eager_mix(logits, weights, dtype=dtype)


@cache
def _once_compiled(eager: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.config.recompile_limit = 64  # for each number of members, and for a single row
    return torch.compile(eager, fullgraph=True, dynamic=True)


def _compiled(eager: Callable[..., Any], *inputs: Any) -> Any:
    return _once_compiled(eager)(*inputs, dtype=torch.float32)


def _mix(size: Size) -> Ways:
    logits, weights = size.logits(), size.weights()
    columns, none, one = _neutral(size)
    others = (columns, size.vocab, none, one, False)
    return Ways(
        lambda rows=ALL, dtype=torch.float32: eager_mix(
            [each[rows] for each in logits], weights[rows], dtype=dtype
        ),
        partial(_compiled, eager_mix, logits, weights),
        partial(log_linear_mix_torch, logits, weights, *others, torch.float32),
        partial(log_linear_mix, logits, weights, signed=False),
    )


def _statistics(size: Size) -> Ways:
    logits, weights = size.logits(), size.weights()
    tokens = torch.randint(size.vocab, (size.rows,), device=size.device)
    return Ways(
        lambda rows=ALL, dtype=torch.float32: eager_statistics(
            [each[rows] for each in logits], weights[rows], tokens[rows], dtype=dtype
        ),
        partial(_compiled, eager_statistics, logits, weights, tokens),
        partial(mixture_statistics_torch, logits, weights, tokens, *_neutral(size)),
        partial(mixture_statistics, logits, weights, tokens),
    )


def _head(size: Size) -> Ways:
    hidden = size.random(size.rows, size.hidden, scale=4 * size.hidden**-0.5)
    heads, weights = size.random(size.vocab, size.hidden), size.weights()
    columns, _, one = _neutral(size)
    return Ways(
        lambda rows=ALL, dtype=torch.float32: eager_head(
            [each[rows] for each in hidden], heads, weights[rows], dtype=dtype
        ),
        partial(_compiled, eager_head, hidden, heads, weights),
        partial(mix_lm_head_torch, hidden, heads, weights, columns, size.vocab, one, None),
        partial(mix_lm_head, hidden, heads, weights, fused=True),
    )


def _neutral(size: Size) -> tuple[list[int], list[float], list[float]]:
    """Neutral columns, soft-caps (0: none) and scales (1) of all members."""
    return list(range(size.members)), [0.0] * size.members, [1.0] * size.members


def _head_bytes(size: Size) -> int:
    read = size.members * (size.vocab + size.rows) * size.hidden * size.dtype.itemsize
    return read + size.rows * size.vocab * 4


class Kernel(NamedTuple):
    """The function that makes a kernel's inputs, and the bytes that the kernel moves."""

    make: Callable[[Size], Ways]
    num_bytes: Callable[[Size], int]


KERNELS = {
    "log_linear_mix": Kernel(_mix, lambda size: size.logits_bytes + size.rows * size.vocab * 4),
    "mixture_statistics": Kernel(_statistics, lambda size: size.logits_bytes),
    "mix_lm_head": Kernel(_head, _head_bytes),
}


def errors(name: str, ways: Ways, size: Size) -> tuple[float, float]:
    """The largest error against float64, and eager torch's, of the first, middle and last row.

    Raises: CommandError if a result in use errs by more than `SLACK` beyond eager torch.
    """
    rows = sorted({0, size.rows // 2, size.rows - 1})
    truth, plain = ways.eager(rows, torch.float64), ways.eager(rows)
    call = ways.kernel if size.device.type == "cuda" else ways.fallback
    results = call()
    if isinstance(results, torch.Tensor):
        results = (results,)
    worst, worst_plain = 0.0, 0.0
    for number, (result, expected, eager) in enumerate(zip(results, truth, plain, strict=True)):
        error, allowed = _error(result[rows], expected), _error(eager, expected)
        if expected.dtype == torch.bool:  # eager torch rounds different values to equal ones
            allowed = 0.0
        if not error <= allowed + SLACK:
            raise CommandError(
                f"{name} (N {size.rows}, V {size.vocab}, M {size.members}): result {number} errs"
                f" by {error:.3g} against float64 truth, eager torch by {allowed:.3g}; it may err"
                f" by {SLACK:g} more. No speed is reported; run the kernels' tests"
            )
        worst, worst_plain = max(worst, error), max(worst_plain, allowed)
    return worst, worst_plain


def _error(values: torch.Tensor, truth: torch.Tensor) -> float:
    return float((values.double() - truth.double()).abs().max())
