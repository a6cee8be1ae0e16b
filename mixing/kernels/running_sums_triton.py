"""Running sums of statistics over the logits of a row, for kernels in Triton.

Each member's logits are taken relative to the largest so far, in units in which 2^d is a
probability's share: d_m = (z_m - top_m) * log2(e) * scale_m. Of each part stay, with
x = sum_m w_m d_m and all of the part's tokens,

    z_m:  top_m = max z_m,  s_m = sum 2^d_m,  b_m = sum 2^(x - top) d_m
    x:    top = max x,      s = sum 2^(x - top),  a = sum 2^(x - top) (x - top)

Parts are merged by shifting all to their largest top. No number of the logits' own size is left to
cancel: they may be far from zero.
Shapes: P parts of a row, T threads, E elements of a thread.
"""

# Triton's language has no types.
# mypy: disable-error-code="no-untyped-def, assignment, var-annotated, misc"

from __future__ import annotations

import triton
import triton.language as tl

NO_TOP = tl.constexpr(-3.4028234663852886e38)
"""The top of no tokens: float32's lowest number, from which -inf can be told and subtracted."""
_FLOOR = tl.constexpr(-3e38)
"""The smallest difference of logits: a token that is banned adds 0 * _FLOOR to a sum, not NaN."""
_OWN_FLOOR = tl.constexpr(-2.9e38)
"""The same of a member without weight, whose bans are none of the mixture's."""


@triton.jit
def exp2(x, IS_CUDA: tl.constexpr):
    """2^x. An NVIDIA GPU has one instruction for it that takes results below 2^-126 for 0; four
    more would find them."""
    if IS_CUDA:
        y = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        y = tl.exp2(x)
    return y


@triton.jit
def soft_capped_tile(z, cap: tl.constexpr):
    """cap * tanh(z / cap); this form saturates to +-cap where exp overflows or vanishes."""
    return cap - (2.0 * cap) / (1.0 + tl.exp(z * (2.0 / cap)))


@triton.jit
def capped(z, cap: tl.constexpr):
    """A member's logits below its soft-cap. A ban stays one."""
    if cap != 0:
        z = tl.where(z == -float("inf"), z, soft_capped_tile(z, cap))
    return z


@triton.jit
def difference(z, top, unit):
    """(z - top) in units of log 2, neither NaN nor below _FLOOR."""
    return tl.maximum((z - top) * unit, _FLOOR)


@triton.jit
def _moved(x_top, x_total, shifts, weights):
    """The mixture's top after its members' tops were replaced; that of no tokens stays."""
    moved = x_top
    for m in tl.static_range(len(shifts)):
        moved += weights[m] * shifts[m]
    return tl.where(x_total == 0, NO_TOP, moved)


@triton.jit
def merged(of_members, of_mixture, weights, units, IS_CUDA: tl.constexpr):
    """Merges parts [P] of a row into one.

    Args:
      of_members: per member (top_m, s_m, b_m); b_m is -inf where the member alone bans a token.
      of_mixture: (top, s, a).
    Returns: the same, as numbers.
    """
    x_tops, x_totals, x_means = of_mixture
    tops = ()
    shifts = ()
    for m in tl.static_range(len(units)):
        top = tl.max(of_members[m][0], 0)
        tops = tops + (top,)  # noqa: RUF005 - Triton knows no other way
        shifts = shifts + (difference(of_members[m][0], top, units[m]),)  # noqa: RUF005
    x_tops = _moved(x_tops, x_totals, shifts, weights)
    x_top = tl.max(x_tops, 0)
    below = difference(x_tops, x_top, 1.0)
    factor = exp2(below, IS_CUDA)
    x_totals = factor * x_totals
    a = tl.sum(factor * x_means + x_totals * below, 0)
    whole = ()
    for m in tl.static_range(len(units)):
        _, s, b = of_members[m]
        s = tl.sum(s * exp2(shifts[m], IS_CUDA), 0)
        is_alone = tl.min(b, 0) == -float("inf")
        b = tl.sum(tl.where(b == -float("inf"), 0.0, factor * b + x_totals * shifts[m]), 0)
        whole = whole + ((tops[m], s, tl.where(is_alone, -float("inf"), b)),)  # noqa: RUF005
    return whole, (x_top, tl.sum(x_totals, 0), a)


@triton.jit
def measured(
    zs,
    banned,
    of_members,
    of_mixture,
    alone,
    weights,
    units,
    KNOWS_BANS: tl.constexpr,
    IS_CUDA: tl.constexpr,
):
    """Adds a tile [T, E] to the running sums [T].

    Args:
      banned: bool [T, E], no tokens or banned ones; with KNOWS_BANS all of these.
      alone: int32 [T], bit m is set if member m bans a token that the mixture does not.
    """
    x = tl.zeros(zs[0].shape, tl.float32)
    ds = ()
    shifts = ()
    news = ()
    for m in tl.static_range(len(zs)):
        old_top, s, b = of_members[m]
        top = tl.maximum(old_top, tl.max(zs[m], 1))
        # NaN stays in s_m alone, from which those who have use for it take it.
        d = (zs[m] - top[:, None]) * units[m]
        shift = difference(old_top, top, units[m])
        s = s * exp2(shift, IS_CUDA) + tl.sum(exp2(d, IS_CUDA), 1)
        d = tl.maximum(d, tl.where(weights[m] != 0, _FLOOR, _OWN_FLOOR))
        x += weights[m] * d
        ds = ds + (d,)  # noqa: RUF005
        shifts = shifts + (shift,)  # noqa: RUF005
        news = news + ((top, s, b),)  # noqa: RUF005
    if not KNOWS_BANS:  # a minimum finds them with fewer instructions than comparisons
        lowest = ds[-1]
        for m in tl.static_range(len(ds) - 1):
            lowest = tl.minimum(lowest, ds[m])
        banned = banned | (lowest == _FLOOR)
    x = tl.where(banned, -float("inf"), x)
    old_x, total, a = of_mixture
    old_x = _moved(old_x, total, shifts, weights)
    x_top = tl.maximum(old_x, tl.max(x, 1))
    below = difference(old_x, x_top, 1.0)
    factor = exp2(below, IS_CUDA)
    total = factor * total
    below_top = difference(x, x_top[:, None], 1.0)
    e = exp2(below_top, IS_CUDA)
    a = factor * a + total * below + tl.sum(e * below_top, 1)
    whole = ()
    for m in tl.static_range(len(zs)):
        top, s, b = news[m]
        b = factor * b + total * shifts[m] + tl.sum(e * ds[m], 1)
        whole = whole + ((top, s, b),)  # noqa: RUF005
    total += tl.sum(e, 1)
    for m in tl.static_range(len(zs)):
        if weights[m] == 0:
            # The divergence is infinite, however small e.
            bans = (ds[m] == _OWN_FLOOR) & (x > -float("inf"))
            alone = alone | (tl.max(bans.to(tl.int32), 1) << m)
    return whole, (x_top, total, a), alone
