"""The mixture's statistics in Triton: each logit is read once, nothing of that size is written.

This is the online softmax in parallel. A first kernel reduces each tile of a row's vocabulary to a
few sums relative to the tile's maximum; a second merges a row's tiles. Per row, with
x = sum_m w_m z_m,

    x:    top = max x,    s = sum e^(x - top),    a = sum e^(x - top) (x - top)
    z_m:  top_m = max z_m,  s_m = sum e^(z_m - top_m),  b_m = sum e^(x - top) z_m

    entropy = log s - a / s        log softmax normaliser of z_m: l_m = top_m + log s_m
    KL(p || pi_m) = l_m - b_m / s - entropy        log Z = top + log s - sum_m w_m l_m

All z_m are taken relative to the token's logit, which changes no result and keeps float32 digits.
Which members ran is an argument: one compiled kernel serves every set of them, and no step waits
for a compiler.
Shapes: N rows, M members, V_m vocabulary of member m, T tiles.
"""

# Triton's language has no types.
# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from prefmix.mixing.kernels.log_linear_mix_triton import is_narrow, load_tile, soft_capped_tile
from prefmix.mixing.kernels.statistics_outputs import Outputs, empty_outputs
from prefmix.mixing.kernels.tuning import Config, Tuner, many

TUNER = Tuner(
    {"BLOCK_V": 1024, "num_warps": 4},
    {"BLOCK_V": 2048, "num_warps": 4},
    {"BLOCK_V": 2048, "num_warps": 8},
    {"BLOCK_V": 4096, "num_warps": 8},
)

_FROM_TOKEN = tl.constexpr(1e30)
"""Beyond this, differences from the token's logit may leave float32's range."""


@triton.jit
def _transformed(z, cap: tl.constexpr, scale: tl.constexpr):
    if cap != 0:
        z = tl.where(z == -float("inf"), z, soft_capped_tile(z, cap))
    return z * scale


@triton.jit
def _token_logit(row_logits, token, stride, common, cap: tl.constexpr, scale: tl.constexpr):
    """The token's z, -inf outside the vocabulary, and the offset that is subtracted from all z."""
    inside = (token >= 0) & (token < common)
    z = tl.load(row_logits + token * stride, mask=inside, other=-float("inf")).to(tl.float32)
    z = _transformed(z, cap, scale)
    return z, tl.where(tl.abs(z) < _FROM_TOKEN, z, 0.0)


@triton.jit
def _finite(top):
    """A maximum that can be subtracted: 0 instead of -inf, because -inf - -inf is NaN."""
    return tl.where(top == -float("inf"), 0.0, top)


@triton.jit(do_not_specialize=["present"])
def _mixture_statistics_tile_kernel(
    logits,  # per member a pointer to [N, V_m]
    strides,  # per member its two strides
    weights,  # float32 [N, M]
    tokens,  # int [N]
    sums,  # float32 [N, 3 + 3 M, T]
    weights_row,
    weights_column,
    tokens_stride,
    common,
    present,  # bit m is set if member m ran
    SOFT_CAPS: tl.constexpr,
    SCALES: tl.constexpr,
    IS_NARROW: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    num_tiles = tl.cdiv(common, BLOCK_V)
    row = (tl.program_id(0) // num_tiles).to(tl.int64)
    tile = tl.program_id(0) % num_tiles
    first = tile.to(tl.int64) * BLOCK_V
    v = first + tl.arange(0, BLOCK_V)
    token = tl.load(tokens + row * tokens_stride).to(tl.int64)
    x = tl.zeros([BLOCK_V], tl.float32)
    banned = v >= common
    zs = ()
    for m in tl.static_range(len(SCALES)):
        size = tl.where((present >> m) & 1 != 0, common, 0)
        weight = tl.load(weights + row * weights_row + m * weights_column)
        row_logits = logits[m] + row * strides[m][0]
        _, offset = _token_logit(row_logits, token, strides[m][1], size, SOFT_CAPS[m], SCALES[m])
        source = row_logits + v * strides[m][1]
        z = load_tile(source, v, first + BLOCK_V, size, -float("inf"), IS_NARROW)
        z = _transformed(z, SOFT_CAPS[m], SCALES[m]) - offset
        counts = v < tl.where(weight != 0, size, 0)
        x += tl.where(counts, z * weight, 0.0)
        banned = banned | (counts & (z == -float("inf")))
        zs = zs + (z,)  # noqa: RUF005 - Triton knows no other way
    x = tl.where(banned, -float("inf"), x)

    top = tl.max(x, 0)
    below = x - _finite(top)
    e = tl.exp(below)
    out = sums + row * (3 + 3 * len(SCALES)) * num_tiles + tile
    tl.store(out, top)
    tl.store(out + num_tiles, tl.sum(e, 0))
    tl.store(out + 2 * num_tiles, tl.sum(tl.where(e == 0, 0.0, e * below), 0))
    for m in tl.static_range(len(SCALES)):
        z = zs[m]
        top = tl.max(z, 0)
        # Banned by the member but not by the mixture: the divergence is infinite, however small e.
        weighted = tl.where(e == 0, 0.0, e * z)
        weighted = tl.where((z == -float("inf")) & (x > -float("inf")), -float("inf"), weighted)
        tl.store(out + (3 + 3 * m) * num_tiles, top)
        tl.store(out + (4 + 3 * m) * num_tiles, tl.sum(tl.exp(z - _finite(top)), 0))
        tl.store(out + (5 + 3 * m) * num_tiles, tl.sum(weighted, 0))


@triton.jit(do_not_specialize=["present"])
def _mixture_statistics_row_kernel(
    logits,
    strides,
    weights,
    tokens,
    sums,
    log_partition,  # float32 [N], as the next two
    entropies,
    logprobs,
    divergences,  # float32 [N, M], contiguous, as the next
    policy_logprobs,
    agrees,  # bool [N, M], contiguous
    weights_row,
    weights_column,
    tokens_stride,
    common,
    num_tiles,
    present,
    SOFT_CAPS: tl.constexpr,
    SCALES: tl.constexpr,
    TILES: tl.constexpr,  # num_tiles, rounded up to a power of two
):
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(tokens + row * tokens_stride).to(tl.int64)
    t = tl.arange(0, TILES)
    source = sums + row * (3 + 3 * len(SCALES)) * num_tiles + t
    tops = tl.load(source, mask=t < num_tiles, other=-float("inf"))
    s = tl.load(source + num_tiles, mask=t < num_tiles, other=0.0)
    a = tl.load(source + 2 * num_tiles, mask=t < num_tiles, other=0.0)
    top = tl.max(tops, 0)
    below = tops - _finite(top)
    rescale = tl.exp(below)
    total = tl.sum(rescale * s, 0)
    mean_below = tl.sum(tl.where(rescale == 0, 0.0, rescale * (a + s * below)), 0) / total
    entropy = tl.log(total) - mean_below
    normaliser = top + tl.log(total)

    x = 0.0
    log_z = normaliser
    banned = (token < 0) | (token >= common)
    for m in tl.static_range(len(SCALES)):
        has_run = (present >> m) & 1 != 0
        size = tl.where(has_run, common, 0)
        weight = tl.load(weights + row * weights_row + m * weights_column)
        weight = tl.where(has_run, weight, 0.0)
        z, offset = _token_logit(
            logits[m] + row * strides[m][0], token, strides[m][1], size, SOFT_CAPS[m], SCALES[m]
        )
        z -= offset
        x += tl.where(weight != 0, z * weight, 0.0)
        banned = banned | ((weight != 0) & (z == -float("inf")))

        own = source + (3 + 3 * m) * num_tiles
        own_tops = tl.load(own, mask=t < num_tiles, other=-float("inf"))
        own_s = tl.load(own + num_tiles, mask=t < num_tiles, other=0.0)
        b = tl.load(own + 2 * num_tiles, mask=t < num_tiles, other=0.0)
        own_top = tl.max(own_tops, 0)
        own_total = tl.sum(tl.exp(own_tops - _finite(own_top)) * own_s, 0)
        own_normaliser = own_top + tl.log(own_total)
        log_z -= tl.where(weight != 0, weight * own_normaliser, 0.0)
        mean_z = tl.sum(rescale * b, 0) / total
        divergence = own_normaliser - mean_z - entropy
        divergence = tl.where(divergence < 0, 0.0, divergence)  # by rounding; NaN stays
        infinite = tl.min(b, 0) == -float("inf")
        logprob = z - own_normaliser
        target = row * len(SCALES) + m
        divergence = tl.where(infinite, float("inf"), divergence)
        tl.store(divergences + target, tl.where(has_run, divergence, float("nan")))
        tl.store(policy_logprobs + target, tl.where(has_run, logprob, float("nan")))
        agrees_here = has_run & (z >= own_top) & (logprob > -float("inf"))
        tl.store(agrees + target, agrees_here)
    tl.store(log_partition + row, tl.where(top == -float("inf"), top, log_z))
    tl.store(entropies + row, entropy)
    tl.store(logprobs + row, tl.where(banned, -float("inf"), x) - normaliser)


def mixture_statistics_triton(
    logits: list[torch.Tensor],
    weights: torch.Tensor,
    tokens: torch.Tensor,
    columns: list[int],
    soft_caps: list[float],
    scales: list[float],
) -> Outputs:
    """Launches the kernels. Takes the arguments of `mixture_statistics_torch`, in any strides."""
    num_rows, num_members = weights.shape
    outputs = empty_outputs(weights, num_members)
    if not num_rows:
        return outputs
    common = min(tensor.shape[1] for tensor in logits)
    # A member that did not run has another's logits, which are not read.
    places = [columns.index(each) if each in columns else 0 for each in range(num_members)]
    logits = [logits[place] for place in places]
    strides = tuple(tensor.stride() for tensor in logits)
    present = sum(1 << column for column in columns)
    of_members = {
        "SOFT_CAPS": tuple(soft_caps[place] for place in places),
        "SCALES": tuple(scales[place] for place in places),
    }

    def run(config: Config) -> None:
        num_tiles = triton.cdiv(common, config["BLOCK_V"])
        shape = (num_rows, 3 + 3 * num_members, num_tiles)
        sums = torch.empty(shape, dtype=torch.float32, device=weights.device)
        inputs = (tuple(logits), strides, weights, tokens, sums)
        _mixture_statistics_tile_kernel[(num_rows * num_tiles,)](
            *inputs,
            *weights.stride(),
            tokens.stride(0),
            common,
            present,
            IS_NARROW=is_narrow(common),
            **of_members,
            **config,
        )
        _mixture_statistics_row_kernel[(num_rows,)](
            *inputs,
            *outputs,
            *weights.stride(),
            tokens.stride(0),
            common,
            num_tiles,
            present,
            TILES=triton.next_power_of_2(num_tiles),
            **of_members,
        )

    key = (weights.device, many(num_rows), common, tuple(tensor.dtype for tensor in logits))
    TUNER.launch(run, key=key, device=weights.device)
    return outputs
