"""A model of a decode step on a GPU, from counts of bytes and launches. No measurement.

    .venv/bin/python tests/support/no_device/decode_model.py

Prints shares of one policy's speed. The counts are those that gpu_pass.py traces; the constants are
assumptions about an H200 and a base of 8B parameters in bfloat16 with adapters of rank 16.

Shapes: K policies, B requests of C tokens each.
"""

from __future__ import annotations

from dataclasses import dataclass

BANDWIDTH, PRODUCTS = 4.0e12, 700e12  # bytes and operations a second
LAUNCH, ATTENTION, HOST_LAYER = 2.2e-6, 8e-6, 60e-6  # of a small kernel; a call; a layer in pieces
SAMPLING = 60e-6 + 15 * LAUNCH
LAYERS, WEIGHTS, HEAD, ADAPTER = 32, 14.0e9, 128_256 * 4096 * 2, 84e6  # of all: bytes
CACHE = 2 * 8 * 128 * 2 * LAYERS  # bytes a token
OTHERS = 6  # launches a layer beside attention and updates

SIZES = ((1, 256), (8, 2048), (64, 2048))


@dataclass(frozen=True)
class Trunk:
    """Launches of a shared trunk that one policy alone has not."""

    updates: float
    """Small kernels a layer that add the adapters' updates."""
    one_call: bool
    """True if attention is called once a layer."""
    step: int
    """Small kernels a step, around the compiled pass."""


BEFORE = Trunk(updates=8 * 4.5 / 2.2, one_call=False, step=58)
STACKED = Trunk(updates=12, one_call=False, step=8 + 5)
JOINED = Trunk(updates=12, one_call=True, step=8 + 5 + 7)
ALL_ROWS = Trunk(updates=4, one_call=True, step=4 + 5 + 7)
NOW = Trunk(updates=4, one_call=True, step=11 + 3 + 5)

GRAPHS = (1, 2, 4, *range(8, 257, 8))
"""Numbers of tokens that vLLM captures graphs of, by default."""


def one_policy(requests: int, context: int) -> float:
    """Seconds of a step of one policy."""
    products = max((WEIGHTS + HEAD) / BANDWIDTH, requests * WEIGHTS / PRODUCTS)
    cached = requests * context * CACHE / BANDWIDTH
    return products + cached + LAYERS * (OTHERS * LAUNCH + ATTENTION + LAUNCH) + SAMPLING


def trunk(
    kind: Trunk, requests: int, context: int, *, policies: int, weighed: int | None = None
) -> float:
    """Seconds of a step of a shared trunk of so many policies.

    Args:
      weighed: the number of policies that each request weighs; None for all.
    """
    pairs = (weighed or policies) * requests
    rows = policies * next(size for size in GRAPHS if size * policies >= pairs)
    read = (WEIGHTS + HEAD + policies * ADAPTER) / BANDWIDTH
    products = max(read, rows * WEIGHTS / PRODUCTS)
    cached = pairs * context * CACHE / BANDWIDTH
    calls = 1 if kind.one_call else policies
    layer = (OTHERS + kind.updates) * LAUNCH + calls * (ATTENTION + LAUNCH)
    return products + cached + LAYERS * layer + kind.step * LAUNCH + SAMPLING


def full_checkpoints(requests: int, context: int, *, running: int, in_pieces: bool) -> float:
    """Seconds of a step in which so many full checkpoints run."""
    alone = one_policy(requests, context) - SAMPLING
    device = running * alone
    return (max(device, running * LAYERS * HOST_LAYER) if in_pieces else device) + SAMPLING


def main() -> None:
    print(
        "| batch, context | before | one call a policy | one call | all rows | full checkpoints |"
    )
    for size in SIZES:
        one = one_policy(*size)
        kinds = [trunk(kind, *size, policies=3) for kind in (BEFORE, STACKED, JOINED, ALL_ROWS)]
        kinds.append(full_checkpoints(*size, running=3, in_pieces=False))
        print(f"| {size[0]}, {size[1]} |", " | ".join(f"{one / each:.2f}" for each in kinds), "|")
    print("by policies that each request weighs: a trunk with all rows, one with these, full")
    for size in SIZES:
        one = one_policy(*size)
        for weighed in (1, 2, 3):
            every = trunk(ALL_ROWS, *size, policies=3)
            own = trunk(NOW, *size, policies=3, weighed=weighed)
            full = full_checkpoints(*size, running=weighed, in_pieces=weighed < 3)
            shares = " | ".join(f"{one / each:.2f}" for each in (every, own, full))
            print(f"| {size[0]}, {size[1]} | {weighed} | {shares} |")


if __name__ == "__main__":
    main()
