"""No test leaves anything behind; long ones first; checkpoints of engines and servers."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.groups import GroupScheduling, place_of
from support.leftovers import Traces

if TYPE_CHECKING:
    from support.engines import AdaptedBase
    from support.preloaded_server import Preloaded

# torch and transformers are imported when a checkpoint is asked for: tests/unit/conftest.py has
# to come before anything that imports Triton.


def pytest_configure() -> None:
    # a shell's background jobs ignore Ctrl-C, those under nohup a hang-up, and so would all that
    # tests start and send them to
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: place_of(item.nodeid))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """One process more than there are cores: tests wait for what they start."""
    return (os.cpu_count() or 1) + 1 if config.option.numprocesses == "auto" else None


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling:
    return GroupScheduling(config, log)


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a handler, variable, folder, path, thread, process or port.

    What fixtures of a wider scope have started is there before the test and may stay. A test that
    imports vLLM, or more of it, may leave what that import leaves.
    """
    traces, num_modules = Traces(), len(sys.modules)
    yield
    imports_vllm = "vllm" in sys.modules and len(sys.modules) > num_modules
    path = str(request.node.path)
    of_vllm = imports_vllm or "tests/engine/" in path or "tests/architectures/" in path
    # A scenario may put another server in the place of its fixture `demo`.
    left = traces.left(of_vllm=of_vllm, processes="demo" not in request.fixturenames)
    assert not left, f"{request.node.nodeid} leaves behind: {'; '.join(left)}"


@pytest.fixture(scope="session")
def preloaded() -> Iterator[Preloaded]:
    """The process that has imported vLLM for the servers of this process's tests."""
    from support.preloaded_server import Preloaded
    from support.server_process import clean_environment

    process = Preloaded(clean_environment())
    yield process
    process.close()


@pytest.fixture(scope="session")
def preloaded_pair() -> Iterator[Preloaded]:
    """The same for servers of two API processes, which count together."""
    from support.preloaded_server import Preloaded
    from support.server_process import clean_environment

    process = Preloaded(clean_environment(), shared_counts=True)
    yield process
    process.close()


@pytest.fixture(scope="session")
def policies(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three policies of one shape."""
    from support.checkpoints.tiny_policies import save_policy

    root = tmp_path_factory.mktemp("policies")
    return [
        save_policy(root / name, seed=seed) for seed, name in enumerate(("one", "two", "three"))
    ]


@pytest.fixture(scope="session")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> AdaptedBase:
    """Three adapters: of all linear layers, rsLoRA of two kinds, and ranks and alphas by module."""
    from support.checkpoints.tiny_adapters import save_adapter, save_merged
    from support.checkpoints.tiny_policies import save_policy
    from support.engines import AdaptedBase

    root = tmp_path_factory.mktemp("adapted")
    base = save_policy(root / "base", seed=0, kv_heads=1)
    adapters = [
        save_adapter(root / "plain", base, seed=1),
        save_adapter(
            root / "rs", base, seed=2, rank=8, use_rslora=True, targets=("q_proj", "v_proj")
        ),
        save_adapter(
            root / "patterns",
            base,
            seed=3,
            rank_pattern={"k_proj": 2, r"mlp\.(up|down)_proj": 6},
            alpha_pattern={r"layers\.\d+\.self_attn\.o_proj": 3.0},
            layers=[1],
        ),
    ]
    merged = [save_merged(root / f"{each.name}_merged", base, each) for each in adapters]
    return AdaptedBase(base=base, adapters=adapters, merged=merged)
