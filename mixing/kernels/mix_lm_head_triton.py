"""Mixed logits from hidden states and LM heads in Triton, without any member's logits in memory.

A program owns a tile of rows times vocabulary and walks the members' hidden widths one after the
other, as if they were one. It skips members to which no row of the tile gives weight.
Shapes: N rows, M present members, V vocabulary, D_m hidden width of member m.
"""

# Triton's language has no types.
# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from prefmix.mixing.kernels.tuning import Config, Tuner

TUNER = Tuner(
    {"BLOCK_V": 64, "BLOCK_D": 64, "num_warps": 4, "num_stages": 2},
    {"BLOCK_V": 64, "BLOCK_D": 128, "num_warps": 4, "num_stages": 4},
    {"BLOCK_V": 128, "BLOCK_D": 64, "num_warps": 8, "num_stages": 4},
    {"BLOCK_V": 256, "BLOCK_D": 64, "num_warps": 8, "num_stages": 3},
)


@triton.jit(do_not_specialize=["num_rows"])  # a batch of one would be compiled anew
def _mix_lm_head_kernel(
    hidden,  # per member a pointer to [N, D_m]
    hidden_rows,  # per member the stride of its rows
    heads,  # per member a pointer to [V_m, D_m]
    head_rows,  # per member the stride of its rows
    weights,  # float32 [N, M]
    out,  # float32 [N, vocab_size], contiguous
    weights_row,
    weights_column,
    num_rows,
    common,
    vocab_size,
    COLUMNS: tl.constexpr,
    WIDTHS: tl.constexpr,
    SCALES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # Programs that share a tile of the heads run side by side: they read it from the L2 cache.
    row_tiles = tl.cdiv(num_rows, BLOCK_N)
    n = (tl.program_id(0) % row_tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    v = (tl.program_id(0) // row_tiles).to(tl.int64) * BLOCK_V + tl.arange(0, BLOCK_V)
    mixed = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
    for m in tl.static_range(len(COLUMNS)):
        weight = tl.load(
            weights + n * weights_row + COLUMNS[m] * weights_column, mask=n < num_rows, other=0.0
        )
        if tl.max(tl.abs(weight), 0) > 0:
            for start in range(0, WIDTHS[m], BLOCK_D):
                d = start + tl.arange(0, BLOCK_D)
                h = tl.load(
                    hidden[m] + n[:, None] * hidden_rows[m] + d[None, :],
                    mask=(weight != 0)[:, None] & (d < WIDTHS[m])[None, :],
                    other=0.0,
                )
                w = tl.load(
                    heads[m] + v[:, None] * head_rows[m] + d[None, :],
                    mask=(v < common)[:, None] & (d < WIDTHS[m])[None, :],
                    other=0.0,
                )
                h = (h.to(tl.float32) * (weight * SCALES[m])[:, None]).to(w.dtype)
                mixed = tl.dot(h, tl.trans(w), mixed, input_precision="ieee")
    mixed = tl.where((v < common)[None, :], mixed, -float("inf"))
    target = out + n[:, None] * vocab_size + v[None, :]
    tl.store(target, mixed, mask=(n < num_rows)[:, None] & (v < vocab_size)[None, :])


def mix_lm_head_triton(
    hidden: list[torch.Tensor],
    heads: list[torch.Tensor],
    weights: torch.Tensor,
    columns: list[int],
    vocab_size: int,
    scales: list[float],
) -> torch.Tensor:
    """Launches the kernel. Takes the arguments of `mix_lm_head_torch`."""
    num_rows = weights.shape[0]
    common = min(vocab_size, *(head.shape[0] for head in heads))
    out = torch.empty((num_rows, vocab_size), dtype=torch.float32, device=weights.device)
    if not num_rows:
        return out
    # A tensor core takes at least 16 rows. With more than 64 their sums leave the registers.
    block_n = min(64, max(16, triton.next_power_of_2(num_rows)))

    def run(config: Config) -> None:
        tiles = triton.cdiv(num_rows, block_n) * triton.cdiv(vocab_size, config["BLOCK_V"])
        _mix_lm_head_kernel[(tiles,)](
            tuple(hidden),
            tuple(tensor.stride(0) for tensor in hidden),
            tuple(heads),
            tuple(tensor.stride(0) for tensor in heads),
            weights,
            out,
            *weights.stride(),
            num_rows,
            common,
            vocab_size,
            COLUMNS=tuple(columns),
            WIDTHS=tuple(tensor.shape[1] for tensor in hidden),
            SCALES=tuple(scales),
            BLOCK_N=block_n,
            **config,
        )

    of_members = tuple((tensor.dtype, tensor.shape[1]) for tensor in hidden)
    key = (weights.device, block_n, vocab_size, of_members)
    TUNER.launch(run, key=key, device=weights.device)
    return out
