"""The table of a started server, and the parameter counts in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.server.launch.terminal.banner import ready_table
from prefmix.server.launch.terminal.parameter_count import human_count, num_parameters
from prefmix.weights.store.profiles import build_profile_set


def save_tensors(file: Path, shapes: dict[str, list[int]]) -> None:
    """Writes a safetensors file of zeros, by the format's description."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        offsets = [offset, offset + size]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        offset += size
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(offset))


def test_parameters_are_summed_over_all_files(tmp_path: Path) -> None:
    save_tensors(tmp_path / "model-1.safetensors", {"a": [3, 4], "b": [5]})
    save_tensors(tmp_path / "model-2.safetensors", {"c": [2, 2, 2], "scalar": []})
    assert num_parameters(tmp_path) == 12 + 5 + 8 + 1


@pytest.mark.parametrize("content", [b"", b"\x05", b"not a header at all", b"\xff" * 64])
def test_unreadable_files_have_no_count(tmp_path: Path, content: bytes) -> None:
    assert num_parameters(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(content)
    assert num_parameters(tmp_path) is None


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "?"), (999, "999"), (1234, "1.2k"), (7_600_000, "7.6M"), (8_030_000_000, "8.0B")],
)
def test_counts_are_short(count: int | None, text: str) -> None:
    assert human_count(count) == text


def test_the_table_says_what_is_served(tmp_path: Path) -> None:
    save_tensors(tmp_path / "model.safetensors", {"a": [1000, 5]})
    spec = MixtureSpec(
        policies=(
            Policy(name="helpful", model=str(tmp_path)),
            Policy(name="safe", model="no-such-org/no-such-model", revision="v2"),
        ),
        reference=Policy(name="base", model=str(tmp_path)),
    )
    profiles = build_profile_set(
        {"x": {"helpful": 1}, "y": {"helpful": 1, "safe": 3}}, spec, default="y"
    )
    table = ready_table(
        spec,
        profiles,
        url="http://h:1",
        model_name="mix",
        surfaces=["metrics", "docs"],
        check="drew 8 tokens",
    )
    rows = [line.split() for line in table.splitlines()]
    assert rows[:4] == [
        ["policy", "parameters", "weight", "model"],
        ["helpful", "5.0k", "0.25", str(tmp_path)],
        ["safe", "?", "0.75", "no-such-org/no-such-model", "@", "v2"],
        ["base", "(reference)", "5.0k", "0", str(tmp_path)],
    ]
    assert rows[5:] == [
        ["model", "mix", "(simplex", "weights)"],
        ["profiles", "x,", "y", "(default)"],
        ["url", "http://h:1"],
        ["open", "metrics,", "docs"],
        ["self-check", "drew", "8", "tokens"],
    ]
    columns = {
        line.index(word)
        for line, word in zip(table.splitlines(), ("model", str(tmp_path)), strict=False)
    }
    assert len(columns) == 1, "columns are aligned"
