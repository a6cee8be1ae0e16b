"""`prefmix serve` on a tiny base, with a folder of adapters that come and go, and their truth."""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prefmix.mixing.ways_to_mix import Mixing
from resilience.harness.asked_server import KEY, TOKEN, Answer, AskedServer
from support.preloaded_server import Preloaded
from support.server_process import ServerProcess, clean_environment

NUM_SLOTS = 4
MAX_RANK = 8
OWN, BASE = "own", "start"
"""The policy of the configuration, and the reference, which is the base itself."""

CONTENTS: tuple[Mapping[str, Any], ...] = (
    {"rank": 4, "size": 0.15},
    {"rank": 8, "use_rslora": True, "targets": ("q_proj", "v_proj"), "size": 0.15},
    {
        "rank": 4,
        "rank_pattern": {"k_proj": 2, r"mlp\.(up|down)_proj": 6},
        "layers": [1],
        "size": 0.2,
    },
    {"rank": 2, "alpha": 4.0, "targets": ("gate_proj", "up_proj", "down_proj"), "size": 0.2},
    {"rank": 8, "layers": [0], "size": 0.15},
)
"""The adapters that may come: other ranks, other layers, so that nothing of one may stay."""


class PolicyServer(AskedServer):
    """A server whose policies change; `start` comes first, `stop` or `kill` last."""

    patience_s = 120.0

    def __init__(self, folder: Path, *engine: str, preloaded: Preloaded | None = None) -> None:
        """Writes the base and the adapters.

        Args:
          engine: further flags of vLLM.
          preloaded: forks the server, which makes a start cheap.
        """
        from support.checkpoints.tiny_adapters import save_adapter, save_merged
        from support.checkpoints.tiny_policies import save_policy

        self._folder, self._engine, self._preloaded = folder, engine, preloaded
        self._starts = 0
        self.store = folder / "weights.json"
        self.policies = folder / "policies"
        self.base = save_policy(folder / "base", seed=0, kv_heads=1)
        own = save_adapter(folder / "own", self.base, seed=1, size=0.15)
        self.truth = {BASE: self.base, OWN: save_merged(folder / "own-merged", self.base, own)}
        """The full checkpoint of each content, by its name."""
        for number, settings in enumerate(CONTENTS):
            name = f"step-{number}"
            adapter = save_adapter(self.policies / name, self.base, seed=10 + number, **settings)
            self.truth[name] = save_merged(folder / f"{name}-merged", self.base, adapter)

    def start(self) -> PolicyServer:
        """Starts a server on the store and waits until it is ready."""
        self._starts += 1
        folder = self._folder / f"start-{self._starts}"
        folder.mkdir()
        words = [
            *("--base", str(self.base), "--adapter", f"{OWN}={self._folder / 'own'}"),
            *("--reference", f"{BASE}={self.base}", "--weights-store", str(self.store)),
            *("--adapter-slots", str(NUM_SLOTS), "--max-adapter-rank", str(MAX_RANK)),
            *("--policies-dir", str(self.policies), "--max-waiting", "64"),
            *("--", "--dtype", "float32", "--enforce-eager", "--max-model-len", "256"),
            *("--kv-cache-memory-bytes", str(48 * 2**20), *self._engine),
        ]
        environ = {"PREFMIX_ADMIN_TOKEN": TOKEN, "VLLM_API_KEY": KEY}
        self.server = ServerProcess(folder, words, preloaded=self._preloaded, **environ)
        self.server.wait_ready()
        return self

    def kill(self) -> None:
        """Ends all its processes at once, if it has any."""
        if self._starts:
            self.server.kill()

    def complete(self, body: Mapping[str, Any]) -> Answer:
        """One completion."""
        return self.ask("POST", "/v1/completions", body)

    def assert_sound(self) -> None:
        """Checks that the server lives, and has reported no exception."""
        assert self.server.process.poll() is None, self.server.stderr[-3000:]
        assert "Traceback" not in self.server.stderr, self.server.stderr[-6000:]
        assert "Traceback" not in self.server.stdout


def completion(
    prompt: tuple[int, ...], weights: Mapping[str, float] | None, mixing: Mixing, **more: Any
) -> dict[str, Any]:
    """The body of a request whose answer can be compared with the truth."""
    wish = {} if weights is None else {"preference_weights": dict(weights)}
    return {
        "prompt": list(prompt),
        "max_tokens": 6,
        "logprobs": 0,
        "return_token_ids": True,
        "ignore_eos": True,
        "preference_mixing": mixing,
        **wish,
        **more,
    }


@contextlib.contextmanager
def served(*engine: str) -> Iterator[PolicyServer]:
    """A server in a folder of its own, for a command, which starts it; it is always ended."""
    # Ended from outside, the server has to end as well.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    two = any(word.startswith("--api-server-count") for word in engine)
    preloaded = Preloaded(clean_environment(), shared_counts=two)
    with tempfile.TemporaryDirectory(prefix="prefmix-resilience-") as folder:
        found = PolicyServer(Path(folder), *engine, preloaded=preloaded)
        try:
            yield found
        finally:
            found.kill()
            preloaded.close()
