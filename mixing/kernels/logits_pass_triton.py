"""The one pass over the members' logits in Triton: mixes them, checks the rows, sums statistics.

Every logit is read once, in pieces of 128 bits wherever rows begin at such. A program owns a part
of a row's vocabulary and walks it in tiles of [threads, elements of a thread]. It keeps running
sums by thread, so that threads are merged once a part and not once a tile. Further kernels merge a
row's parts: prefmix.mixing.kernels.broken_rows_triton, whether a token can be drawn from the row;
prefmix.mixing.kernels.mixture_statistics_triton, the figures. The sums are those of
running_sums_triton.py.

Which members ran is an argument: one compiled kernel serves every set of them, and no step waits
for a compiler.
Shapes: N rows, M members, V_m vocabulary of member m, P parts of a row, Q a power of two that is
not below P, T threads, E elements of a thread.
"""

# Triton's language has no types.
# mypy: disable-error-code="no-untyped-def, assignment, var-annotated, misc"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.target_info import is_cuda

from prefmix.mixing.kernels.outputs import aligned_rows
from prefmix.mixing.kernels.running_sums_triton import NO_TOP, capped, measured, merged
from prefmix.mixing.kernels.tuning import Config, Tuner, many

TUNER = Tuner(
    {"THREADS": 128, "num_warps": 4},
    {"THREADS": 64, "num_warps": 2},
)

_LOG2_E = 1.4426950408889634
_NO_LIMIT = tl.constexpr(1 << 30)
"""A limit of which Triton knows that it narrows no load."""
_PROGRAMS = 1024
"""Programs that a launch has at least where its tiles suffice: some for each multiprocessor."""
_MOST_TILES = 16
"""Tiles of a part, at most."""
_SMALLEST_TILE = 256


@triton.jit
def _tile(
    logits,
    strides,
    out,
    row,
    start,
    common,
    vocab_size,
    takes,
    weights,
    units,
    worst,
    of_members,
    of_mixture,
    alone,
    SOFT_CAPS: tl.constexpr,
    SCALES: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    MIXES: tl.constexpr,
    CHECKS: tl.constexpr,
    MEASURES: tl.constexpr,
    THREADS: tl.constexpr,
    ELEMENTS: tl.constexpr,
    IS_CUDA: tl.constexpr,
):
    """Reads the tile at `start`. A mask that ends anywhere would narrow all its loads and stores: a
    whole tile has none."""
    e = tl.arange(0, THREADS)[:, None] * ELEMENTS + tl.arange(0, ELEMENTS)[None, :]
    v = row * 0 + start + e  # in 64 bits: strides may lead beyond 32
    mixed = tl.zeros([THREADS, ELEMENTS], tl.float32)
    banned = e < 0 if IS_WHOLE else e >= common - start
    zs = ()
    for m in tl.static_range(len(SCALES)):
        source = logits[m] + row * strides[m][0] + v * strides[m][1]
        fill = -float("inf") if MEASURES else 0.0
        limit = tl.where(takes[m] != 0, _NO_LIMIT if IS_WHOLE else common - start, 0)
        z = tl.load(source, mask=e < limit, other=fill).to(tl.float32)
        if MIXES:  # a comparison with NaN is false
            banned = banned | (z == tl.where(weights[m] != 0, -float("inf"), float("nan")))
        z = capped(z, SOFT_CAPS[m])
        if MIXES:
            # Without figures a member without weight was not read.
            weighed = tl.where(weights[m] != 0, z, 0.0) if MEASURES else z
            mixed += weighed * (weights[m] * SCALES[m])
        zs = zs + (z,)  # noqa: RUF005
    if MIXES:
        mixed = tl.where(banned, -float("inf"), mixed)
        if IS_WHOLE:
            tl.store(out + v, mixed)
        else:
            tl.store(out + v, mixed, mask=e < vocab_size - start)
        if CHECKS:
            worst = tl.maximum(worst, mixed, propagate_nan=tl.PropagateNan.ALL)
    if MEASURES:
        of_members, of_mixture, alone = measured(
            zs, banned, of_members, of_mixture, alone, weights, units, MIXES, IS_CUDA
        )
    return worst, of_members, of_mixture, alone


@triton.jit(do_not_specialize=["present", "num_parts"])
def _logits_pass_kernel(
    logits,  # per member a pointer to [N, V_m]
    strides,  # per member its two strides
    weights,  # float32 [N, M]
    out,  # [N, vocab_size], elements of a row next to each other
    tops,  # float32 [N, Q], contiguous: a part's largest mixed logit, inf if one is NaN
    sums,  # float32 [N, 3 + 3 M, P], rows of Q
    weights_row,
    weights_column,
    out_row,
    common,
    vocab_size,
    num_parts,
    length,  # elements of a part, a multiple of a tile's
    present,  # bit m is set if member m ran
    SOFT_CAPS: tl.constexpr,
    SCALES: tl.constexpr,
    UNITS: tl.constexpr,
    MIXES: tl.constexpr,
    CHECKS: tl.constexpr,
    MEASURES: tl.constexpr,
    THREADS: tl.constexpr,
    ELEMENTS: tl.constexpr,
    PARTS: tl.constexpr,  # Q
):
    IS_CUDA: tl.constexpr = is_cuda()
    TILE: tl.constexpr = THREADS * ELEMENTS
    row = (tl.program_id(0) // num_parts).to(tl.int64)
    part = tl.program_id(0) % num_parts
    takes = ()
    of_weights = ()
    of_members = ()
    low = tl.full([THREADS], NO_TOP, tl.float32)
    zero = tl.zeros([THREADS], tl.float32)
    for m in tl.static_range(len(SCALES)):
        has_run = (present >> m) & 1
        weight = tl.load(weights + row * weights_row + m * weights_column)
        weight = tl.where(has_run != 0, weight, 0.0)
        is_taken = has_run if MEASURES else tl.where(weight != 0, 1, 0)
        takes = takes + (is_taken,)  # noqa: RUF005
        of_weights = of_weights + (weight,)  # noqa: RUF005
        of_members = of_members + ((low, zero, zero),)  # noqa: RUF005
    of_mixture = (low, zero, zero)
    alone = tl.zeros([THREADS], tl.int32)
    worst = tl.full([THREADS, ELEMENTS], -float("inf"), tl.float32)
    own = out + row * out_row
    begin = part * length
    end = tl.minimum(begin + length, vocab_size)
    whole = common // TILE * TILE
    for start in range(begin, tl.minimum(end, whole), TILE):
        worst, of_members, of_mixture, alone = _tile(
            logits, strides, own, row, start, common, vocab_size, takes, of_weights, UNITS,
            worst, of_members, of_mixture, alone, SOFT_CAPS, SCALES, True, MIXES, CHECKS,
            MEASURES, THREADS, ELEMENTS, IS_CUDA,
        )  # fmt: skip
    for start in range(tl.maximum(begin, whole), end, TILE):
        worst, of_members, of_mixture, alone = _tile(
            logits, strides, own, row, start, common, vocab_size, takes, of_weights, UNITS,
            worst, of_members, of_mixture, alone, SOFT_CAPS, SCALES, False, MIXES, CHECKS,
            MEASURES, THREADS, ELEMENTS, IS_CUDA,
        )  # fmt: skip
    if CHECKS:
        top = tl.max(tl.max(tl.where(worst != worst, float("inf"), worst), 1), 0)
        p = tl.arange(0, PARTS)
        behind = tl.where(part == num_parts - 1, num_parts, PARTS)
        top = tl.where(p == part, top, -float("inf"))
        tl.store(tops + row * PARTS + p, top, mask=(p == part) | (p >= behind))
    if MEASURES:
        flagged = ()
        for m in tl.static_range(len(SCALES)):
            top, s, b = of_members[m]
            b = tl.where((alone >> m) & 1 != 0, -float("inf"), b)
            flagged = flagged + ((top, s, b),)  # noqa: RUF005
        of_members, of_mixture = merged(flagged, of_mixture, of_weights, UNITS, IS_CUDA)
        target = sums + row * (3 + 3 * len(SCALES)) * PARTS + part
        for i in tl.static_range(3):
            tl.store(target + i * PARTS, of_mixture[i])
            for m in tl.static_range(len(SCALES)):
                tl.store(target + (3 + 3 * m + i) * PARTS, of_members[m][i])


class LogitsPass(NamedTuple):
    """The tensors that one pass over the members' logits filled."""

    mixed_NV: torch.Tensor | None
    """float32 [N, V], natural-log scale, not normalised."""
    tops_NQ: torch.Tensor | None
    """float32, each part's largest mixed logit, inf if one is NaN; -inf behind the parts."""
    sums: torch.Tensor | None
    """float32 [N, 3 + 3 M, P] in rows of Q; prefmix.mixing.kernels.mixture_statistics_triton makes
    figures of them."""


class Members(NamedTuple):
    """All M members as kernels take them, those that did not run with another's logits."""

    logits: tuple[torch.Tensor, ...]
    present: int
    """Bit m is set if member m ran."""
    soft_caps: tuple[float, ...]
    scales: tuple[float, ...]

    @classmethod
    def of(
        cls,
        logits: list[torch.Tensor],
        columns: list[int],
        soft_caps: list[float],
        scales: list[float],
        num_members: int,
    ) -> Members:
        """Takes what `present_members` returns."""
        places = [columns.index(each) if each in columns else 0 for each in range(num_members)]
        return cls(
            tuple(logits[place] for place in places),
            sum(1 << column for column in columns),
            tuple(soft_caps[place] for place in places),
            tuple(scales[place] for place in places),
        )

    @property
    def strides(self) -> tuple[tuple[int, ...], ...]:
        """Per member its two strides."""
        return tuple(each.stride() for each in self.logits)

    @property
    def units(self) -> tuple[float, ...]:
        """Per member what its differences are multiplied by: powers of 2 come of them."""
        return tuple(_LOG2_E * scale for scale in self.scales)


def pass_over_logits(
    members: Members,
    weights: torch.Tensor,
    *,
    vocab_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    checks: bool = False,
    measures: bool = False,
) -> LogitsPass:
    """Launches the kernel; nothing waits for the device.

    Args:
      weights: float32 [N, M], in any strides.
      vocab_size: V, the width of the mixed logits; None for none.
      dtype: of the mixed logits.
      checks: also keeps each part's largest mixed logit.
      measures: also keeps the sums from which statistics are made.
    """
    num_rows, num_members = weights.shape
    common = min(each.shape[1] for each in members.logits)
    width = common if vocab_size is None else vocab_size
    common = min(common, width)
    mixed = None
    if vocab_size is not None:
        mixed = aligned_rows(num_rows, width, dtype=dtype, device=weights.device)
    elements = 128 // 8 // min(each.dtype.itemsize for each in members.logits)
    # Q does not depend on the number of rows: another one would be compiled anew.
    most = triton.next_power_of_2(triton.cdiv(width, _SMALLEST_TILE))
    found = LogitsPass(mixed, None, None)
    if not num_rows:
        return found

    def run(config: Config) -> None:
        nonlocal found
        tile = config["THREADS"] * elements
        tiles = triton.cdiv(width, tile)
        length = tile * max(1, min(_MOST_TILES, num_rows * tiles // _PROGRAMS))
        num_parts = triton.cdiv(width, length)
        tops = sums = None
        if checks:
            tops = torch.empty((num_rows, most), dtype=torch.float32, device=weights.device)
        if measures:
            shape = (num_rows, 3 + 3 * num_members, most)
            memory = torch.empty(shape, dtype=torch.float32, device=weights.device)
            sums = memory[:, :, :num_parts]
        found = LogitsPass(mixed, tops, sums)
        _logits_pass_kernel[(num_rows * num_parts,)](
            members.logits,
            members.strides,
            weights,
            *(weights if each is None else each for each in found),
            *weights.stride(),
            0 if mixed is None else mixed.stride(0),
            common,
            width,
            num_parts,
            length,
            members.present,
            SOFT_CAPS=members.soft_caps,
            SCALES=members.scales,
            UNITS=members.units,
            MIXES=mixed is not None,
            CHECKS=checks,
            MEASURES=measures,
            ELEMENTS=elements,
            PARTS=most,
            **config,
        )

    kinds = tuple(each.dtype for each in members.logits)
    key = (weights.device, many(num_rows), width, kinds, mixed is None, checks, measures)
    TUNER.launch(run, key=key, device=weights.device)
    return found


def log_linear_mix_triton(
    logits: list[torch.Tensor],
    weights: torch.Tensor,
    columns: list[int],
    vocab_size: int,
    soft_caps: list[float],
    scales: list[float],
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Launches the kernel to mix alone. Takes the arguments of `log_linear_mix_torch`.

    Members with zero weight in a row are masked out of the load itself, so their bytes never leave
    memory.
    """
    members = Members.of(logits, columns, soft_caps, scales, weights.shape[1])
    mixed_NV = pass_over_logits(members, weights, vocab_size=vocab_size, dtype=dtype).mixed_NV
    assert mixed_NV is not None
    return mixed_NV
