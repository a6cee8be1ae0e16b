"""An adapter that would keep its reader busy for ever, or for seconds, is refused at once."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from prefmix.mixing.checkpoints import adapter_limits
from prefmix.mixing.checkpoints.lora import AdapterError, read_adapter
from prefmix.mixing.spec import Policy
from support.engines import AdaptedBase

pytestmark = pytest.mark.usefixtures("vllm")

ENDLESS = r"(([a-z0-9_.])+)+!"
"""Tries each of the ways to cut a name into pieces: 2 to the power of its length."""


def edited(folder: Path, adapted: AdaptedBase, **entries: Any) -> Policy:
    shutil.copytree(adapted.adapters[0], folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    return Policy(name="p", model=str(folder))


@pytest.mark.parametrize(
    "entries",
    [
        {"rank_pattern": {ENDLESS: 4}},
        {"alpha_pattern": {ENDLESS: 4}},
        {"target_modules": ENDLESS},
        {"exclude_modules": ENDLESS},
        {"layers_pattern": ENDLESS, "layers_to_transform": [0]},
    ],
    ids=lambda entries: next(iter(entries)),
)
def test_a_pattern_without_end_is_refused(
    adapted: AdaptedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: dict[str, Any]
) -> None:
    monkeypatch.setattr(adapter_limits, "PATTERN_TIMEOUT_S", 0.3)
    with pytest.raises(AdapterError, match=r"comes to no end within 0\.3 s; simplify rank_"):
        read_adapter(edited(tmp_path / "endless", adapted, **entries))


def test_usual_patterns_are_taken(adapted: AdaptedBase, tmp_path: Path) -> None:
    usual = r".*\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
    patterns = {r"layers\.\d+\.mlp\.up_proj": 4, "q_proj": 4, r"(?:.*?(?:attn|mlp).*?)": 4}
    policy = edited(tmp_path / "usual", adapted, target_modules=usual, rank_pattern=patterns)
    assert set(read_adapter(policy).ranks.values()) == {4}


def test_a_long_header_or_config_is_not_parsed(adapted: AdaptedBase, tmp_path: Path) -> None:
    began = time.monotonic()
    policy = edited(tmp_path / "header", adapted)
    length = adapter_limits.MAX_HEADER_BYTES + 1
    file = tmp_path / "header" / "adapter_model.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + b" " * length)
    with pytest.raises(AdapterError, match=r"header of 4,194,305 bytes in its adapter_model\.safe"):
        read_adapter(policy)
    policy = edited(tmp_path / "config", adapted, note="x" * adapter_limits.MAX_CONFIG_BYTES)
    with pytest.raises(AdapterError, match=r"bytes in its adapter_config\.json, and at most 1,048"):
        read_adapter(policy)
    assert time.monotonic() - began < 5
