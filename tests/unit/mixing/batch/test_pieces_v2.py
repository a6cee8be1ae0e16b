"""Steps that leave policies out replay graphs of pieces where these take less time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vllm.config import CUDAGraphMode

pytestmark = pytest.mark.usefixtures("vllm")

GIB = 2**30


@pytest.mark.parametrize(
    ("gib", "layers", "active", "are_faster"),
    [
        (15, 32, [True, False, False], True),  # of 8B in bfloat16
        (15, 32, [True, True, False], True),
        (2, 16, [False, True, False], True),
        (2, 16, [False, True, True], False),  # the host is slower than the device
        (0.25, 12, [False, False, True], False),
    ],
)
def test_pieces_are_taken_where_the_host_keeps_up(
    gib: float, layers: int, active: list[bool], are_faster: bool
) -> None:
    from prefmix.mixing.batch.pieces_v2 import Pieces

    pieces = Pieces([int(gib * GIB)] * 3, [layers] * 3)
    assert pieces.are_faster(active) is are_faster
    assert not pieces.are_faster([True] * 3)


def test_members_of_different_sizes_count_by_their_own() -> None:
    from prefmix.mixing.batch.pieces_v2 import Pieces

    pieces = Pieces([15 * GIB, GIB], [80, 16])
    assert pieces.are_faster([False, True])
    assert not pieces.are_faster([True, False]), "little is left out"


def test_the_runner_asks_about_steps_of_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    from prefmix.mixing.batch.pieces_v2 import take_pieces

    batch = SimpleNamespace(idx_mapping_np=[3, 1])
    monkeypatch.setattr(
        GPUModelRunner,
        "gather_batch_req_state",
        lambda self, output, dummy_run: (None if dummy_run else batch, 1),
    )
    take_pieces()
    take_pieces()
    asked: list[Any] = []

    def runner(answer: bool) -> Any:
        weights = SimpleNamespace(takes_pieces=lambda slots: asked.append(slots) or answer)
        return SimpleNamespace(model=SimpleNamespace(weights=weights))

    gather = GPUModelRunner.gather_batch_req_state
    assert gather(runner(True), None, False) == (batch, None)
    assert gather(runner(False), None, False) == (batch, 1)
    assert asked == [[3, 1]] * 2
    # Graphs are captured of all members, and other models are none of ours.
    assert gather(runner(True), None, True) == (None, 1)
    assert gather(SimpleNamespace(model=SimpleNamespace()), None, False) == (batch, 1)
    assert len(asked) == 2


def engine(mode: CUDAGraphMode, *, replicas: int = 1, **step: Any) -> tuple[Any, Any]:
    model = SimpleNamespace(
        step=SimpleNamespace(
            **{"num_members": 2, "runs_everyone": False, "can_skip": True, **step}
        ),
        member_of_layer="ab".index,
        parameter_bytes=lambda: [15 * GIB, 15 * GIB, GIB],
    )
    layers = {"a": SimpleNamespace(kv_cache=None), "b": SimpleNamespace(kv_cache=None)}
    config = SimpleNamespace(
        compilation_config=SimpleNamespace(cudagraph_mode=mode, static_forward_context=layers),
        parallel_config=SimpleNamespace(data_parallel_size=replicas),
    )
    return model, config


def test_engines_with_both_kinds_of_graphs_choose() -> None:
    from vllm.config import CUDAGraphMode

    from prefmix.mixing.batch.pieces_v2 import pieces_of

    default = CUDAGraphMode.FULL_AND_PIECEWISE
    pieces = pieces_of(*engine(default))
    assert pieces is not None
    assert pieces.are_faster([True, False])
    for mode in (CUDAGraphMode.NONE, CUDAGraphMode.FULL, CUDAGraphMode.PIECEWISE):
        assert pieces_of(*engine(mode)) is None
    assert pieces_of(*engine(CUDAGraphMode.FULL_DECODE_ONLY)) is None
    # A trunk, blocks that are not kept apart, one member, ranks that agree about graphs.
    assert pieces_of(*engine(default, runs_everyone=True)) is None
    assert pieces_of(*engine(default, can_skip=False)) is None
    assert pieces_of(*engine(default, num_members=1)) is None
    assert pieces_of(*engine(default, replicas=2)) is None
