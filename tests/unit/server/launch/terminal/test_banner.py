"""The table of a started server, and the parameter counts in it."""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.server.console.settings import CONSOLE_ATTRIBUTE, ConsoleSettings
from prefmix.server.launch.terminal.banner import console_address, first_request, ready_table
from prefmix.server.launch.terminal.parameter_count import human_count, num_parameters
from prefmix.weights.store.dormant import DormantProfile
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
        request="curl http://h:1",
        console="http://h:1/console",
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
        ["console", "http://h:1/console"],
        [],
        ["try", "it:"],
        [],
        ["curl", "http://h:1"],
    ]
    columns = {
        line.index(word)
        for line, word in zip(table.splitlines(), ("model", str(tmp_path)), strict=False)
    }
    assert len(columns) == 1, "columns are aligned"


def test_the_table_says_which_profiles_mix_in_a_way_of_their_own() -> None:
    spec = MixtureSpec(
        policies=(Policy(name="a", model="org/a"),), base="org/base", mixing="parameters"
    )
    mixings = {"plain": None, "soup": "parameters", "exact": "logits"}
    profiles = build_profile_set(
        {name: {"a": 1} for name in mixings}, spec, default="soup", mixings=mixings
    )
    table = ready_table(
        spec, profiles, url="http://h:1", model_name="mix", surfaces=[], request="curl"
    )
    rows = [" ".join(line.split()) for line in table.splitlines()]
    assert "profiles plain, soup (parameters, default), exact (logits)" in rows
    assert "model mix (simplex weights, mixing parameters)" in rows
    waiting = replace(profiles, dormant={"calm": DormantProfile(weights={"slow": 1.0})})
    table = ready_table(
        spec, waiting, url="http://h:1", model_name="mix", surfaces=[], request="curl"
    )
    assert "exact (logits), calm (dormant)" in table


def arguments(*, uds: str | None = None, keys: Sequence[str] = (), **console: Any) -> Namespace:
    settings = ConsoleSettings(**({"is_on": True} | console))
    given = {"served_model_name": ["mix"], "uds": uds, "api_key": list(keys)}
    return Namespace(**given, **{CONSOLE_ATTRIBUTE: settings})


def test_the_request_to_paste_is_one_that_the_server_takes() -> None:
    """A conversation, or a text to complete for a model that knows no conversations."""
    words = shlex.split(first_request(arguments(prompt="It's on"), url="http://h:1"))
    assert words[:2] == ["curl", "http://h:1/v1/chat/completions"]
    assert words[words.index("-H") + 1] == "Content-Type: application/json"
    body = json.loads(words[words.index("-d") + 1])
    assert (body["model"], body["messages"][0]["content"]) == ("mix", "It's on")

    plain = arguments(has_chat_template=False, keys=["secret"], uds="/run/a b")
    words = shlex.split(first_request(plain, url="http://localhost"))
    assert words[:4] == ["curl", "--unix-socket", "/run/a b", "http://localhost/v1/completions"]
    assert "Authorization: Bearer $PREFMIX_API_KEY" in words
    assert "secret" not in " ".join(words)
    assert json.loads(words[-1])["prompt"] == "Hello!"


def test_the_console_s_address_is_shown_where_a_browser_reaches_it() -> None:
    url = "http://127.0.0.1:8000"
    assert console_address(arguments(), url=url) == f"{url}/console"
    assert console_address(arguments(is_on=False), url=url) is None
    assert console_address(arguments(uds="/run/x"), url=url) is None
