"""Mixing, row check and statistics of a step in one read of the members' logits, on a GPU.

On a CPU each is a function of its own (log_linear_mix.py, mixture_statistics.py), in blocks that
stay in the cache.
Shapes: N logits rows, M members, V vocabulary of the mixture, V_m vocabulary of member m.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from prefmix.mixing.kernels.members import present_members
from prefmix.mixing.kernels.mixture_statistics import MixtureStatistics


@dataclass(frozen=True)
class OnePass:
    """The mixture of a step, and what its row check and statistics need."""

    mixed_NV: torch.Tensor
    """float32, natural-log scale, not normalised: that of `log_linear_mix`."""
    tops_NQ: torch.Tensor | None
    """Numbers that `find_broken_rows` reads in the stead of the mixed logits; None without rows."""
    statistics: Callable[[torch.Tensor], MixtureStatistics] | None
    """Makes the statistics of tokens, int [N]; None unless they were asked for. It reads no more of
    the logits than each token's, so they must be as they were."""


def mix_in_one_pass(
    logits: Sequence[torch.Tensor | None],
    weights_NM: torch.Tensor,
    *,
    vocab_size: int,
    scale: Sequence[float] | None = None,
    measures: bool = False,
) -> OnePass:
    """Mixes each row's M sets of logits into one, and keeps what check and statistics need.

    Args:
      logits: per member [N, V_m], or None where all its weights are zero; on a GPU.
      weights_NM: float32.
      vocab_size: V; entries past the shortest V_m are -inf, those of logits past V are ignored.
      scale: per member a factor, as in `log_linear_mix`.
      measures: true if statistics will be asked for.
    Raises: ValueError if shapes, dtypes or devices disagree or there is no logits tensor at all.
    """
    # Imported here, so that the package needs no Triton where there is no GPU.
    from prefmix.mixing.kernels.logits_pass_triton import Members, pass_over_logits
    from prefmix.mixing.kernels.mixture_statistics_triton import figures_of_tokens

    present = present_members(logits, weights_NM, what="logits", scale=scale)
    tensors = [each[:, :vocab_size] for each in present.tensors]
    members = Members.of(tensors, *present[1:], weights_NM.shape[1])
    found = pass_over_logits(
        members, weights_NM, vocab_size=vocab_size, checks=True, measures=measures
    )
    assert found.mixed_NV is not None

    def statistics(tokens_N: torch.Tensor) -> MixtureStatistics:
        return MixtureStatistics(*figures_of_tokens(members, weights_NM, tokens_N, found.sums))

    return OnePass(found.mixed_NV, found.tops_NQ, statistics if measures else None)
