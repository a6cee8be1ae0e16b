"""Log-linear mixing of logits in Triton: every logit is read once, every result written once.

A program owns one row's tile of the vocabulary and walks the members. Members with zero weight in
the row are masked out of the load itself, so their bytes never leave memory.
Shapes: N rows, M present members, V vocabulary.
"""

# Triton's language has no types.
# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from prefmix.mixing.kernels.tuning import Config, Tuner, many

TUNER = Tuner(
    {"BLOCK_V": 2048, "num_warps": 4},
    {"BLOCK_V": 4096, "num_warps": 8},
    {"BLOCK_V": 8192, "num_warps": 8},
)


@triton.jit
def soft_capped_tile(z, cap: tl.constexpr):
    """cap * tanh(z / cap); this form saturates to +-cap where exp overflows or vanishes."""
    return cap - (2.0 * cap) / (1.0 + tl.exp(z * (2.0 / cap)))


@triton.jit
def load_tile(source, v, end, limit, other, IS_NARROW: tl.constexpr):
    """Loads the elements v < limit of a tile that ends at `end`, as float32.

    A mask that ends at any place makes narrow loads of a whole tile. If the limit is no multiple of
    16 elements, only the tile that holds it gets a mask.
    """
    if IS_NARROW:
        if end <= limit:
            z = tl.load(source).to(tl.float32)
        else:
            z = tl.load(source, mask=v < limit, other=other).to(tl.float32)
    else:
        z = tl.load(source, mask=v < limit, other=other).to(tl.float32)
    return z


def is_narrow(common: int) -> bool:
    """True if a mask that ends at `common` makes loads narrow: Triton knows multiples of 16."""
    return common % 16 != 0


@triton.jit
def _log_linear_mix_kernel(
    logits,  # per member a pointer to [N, V_m]
    strides,  # per member its two strides
    weights,  # float32 [N, M]
    out,  # float32 [N, vocab_size], contiguous
    weights_row,
    weights_column,
    common,
    vocab_size,
    COLUMNS: tl.constexpr,
    SOFT_CAPS: tl.constexpr,
    SCALES: tl.constexpr,
    IS_NARROW: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    tiles = tl.cdiv(vocab_size, BLOCK_V)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    first = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_V
    v = first + tl.arange(0, BLOCK_V)
    mixed = tl.zeros([BLOCK_V], tl.float32)
    banned = v >= common
    for m in tl.static_range(len(COLUMNS)):
        weight = tl.load(weights + row * weights_row + COLUMNS[m] * weights_column)
        limit = tl.where(weight != 0, common, 0)
        source = logits[m] + row * strides[m][0] + v * strides[m][1]
        z = load_tile(source, v, first + BLOCK_V, limit, 0.0, IS_NARROW)
        ban = z == -float("inf")
        if SOFT_CAPS[m] != 0:
            z = soft_capped_tile(z, SOFT_CAPS[m])
        banned = banned | ban
        mixed += tl.where(ban, 0.0, z * (weight * SCALES[m]))
    tl.store(out + row * vocab_size + v, tl.where(banned, -float("inf"), mixed), v < vocab_size)


def log_linear_mix_triton(
    logits: list[torch.Tensor],
    weights: torch.Tensor,
    columns: list[int],
    vocab_size: int,
    soft_caps: list[float],
    scales: list[float],
) -> torch.Tensor:
    """Launches the kernel. Takes the arguments of `log_linear_mix_torch`, in any strides."""
    num_rows = weights.shape[0]
    common = min(vocab_size, *(tensor.shape[1] for tensor in logits))
    out = torch.empty((num_rows, vocab_size), dtype=torch.float32, device=weights.device)
    if not num_rows:
        return out

    def run(config: Config) -> None:
        _log_linear_mix_kernel[(num_rows * triton.cdiv(vocab_size, config["BLOCK_V"]),)](
            tuple(logits),
            tuple(tensor.stride() for tensor in logits),
            weights,
            out,
            *weights.stride(),
            common,
            vocab_size,
            COLUMNS=tuple(columns),
            SOFT_CAPS=tuple(soft_caps),
            SCALES=tuple(scales),
            IS_NARROW=is_narrow(common),
            **config,
        )

    key = (weights.device, many(num_rows), vocab_size, tuple(tensor.dtype for tensor in logits))
    TUNER.launch(run, key=key, device=weights.device)
    return out
