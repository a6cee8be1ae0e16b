"""Any configuration, command line, prompt, score table or id is read or properly refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prefmix.mixing.spec import MixtureSpec
from prefmix.server.api.accounting import Account
from prefmix.server.cli.main import COMMANDS, main, split_passthrough
from prefmix.server.config.config_file import load_config
from prefmix.server.config.errors import ConfigError
from prefmix.server.config.model_paths import policies_from_flags
from prefmix.server.config.serve_config import ServeConfig
from prefmix.server.telemetry import request_log
from prefmix.weights.engines.prompts import PromptsError, read_prompts
from prefmix.weights.fit import score_table
from prefmix.weights.fit.score_table import ScoreTableError
from resilience.harness import tally
from resilience.harness.attempt import attempt
from resilience.inputs.strategies import any_json, any_text, names, plain_text, specs, valid_ratios

KEYS = tuple(ServeConfig.model_fields)


def assert_sentence(refusal: Exception | None) -> None:
    assert refusal is not None
    assert 0 < len(str(refusal)) < 2000


# --- configuration and command line --------------------------------------------------------------


def read_config(path: Path) -> ServeConfig | None:
    """The configuration with its mixture and profiles; None if it was refused."""

    def read() -> ServeConfig:
        config = load_config(path, {})
        config.profile_set(config.spec())
        return config

    config, refusal = attempt(read, ConfigError)
    if config is None:
        assert_sentence(refusal)
    return config


yaml_words = st.sampled_from(
    ["policies", "a", ": ", "\n", "  ", "- ", "{", "}", "[", "]", "&x ", "*x", "<<: ", "? ", "| ",
     "!!int ", "!!float ", "!!timestamp ", "!!binary ", "!!set ", "!!python/name:os.system ",
     "2020-13-45", "0x", "1e400", "~", "'", '"', "#", "---", "...", "\t", "%YAML 9.9\n", "\ud800"]
)  # fmt: skip


@given(text=st.one_of(st.lists(yaml_words, max_size=25).map("".join), st.binary(max_size=60)))
def test_any_file_is_a_configuration_or_refused(tmp_path: Path, text: str | bytes) -> None:
    tally.hostile("configurations")
    content = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    read_config(path)


@given(values=st.dictionaries(st.sampled_from(KEYS), any_json, max_size=5))
def test_any_values_of_known_keys_are_a_configuration_or_refused(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    tally.hostile("configurations")
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML
    read_config(path)


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "a:\n "])
def test_a_configuration_of_any_depth_is_refused(tmp_path: Path, opening: str) -> None:
    tally.hostile("configurations")
    path = tmp_path / "c.yaml"
    path.write_text(opening * 5000)
    assert read_config(path) is None


@given(spec=specs("simplex"), data=st.data())
def test_a_written_configuration_is_read_back(
    tmp_path: Path, spec: MixtureSpec, data: st.DataObject
) -> None:
    ratios = data.draw(valid_ratios(spec.member_names))
    content: dict[str, Any] = {
        "policies": {policy.name: policy.model for policy in spec.policies},
        "profiles": {"only": ratios},
    }
    if spec.reference is not None:
        content["reference"] = {spec.reference.name: spec.reference.model}
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    config = read_config(path)
    assert config is not None
    assert config.spec() == spec
    assert config.profile_set(spec).default == "only"


@given(words=st.lists(st.one_of(any_text, st.just("--")), max_size=8))
def test_the_command_line_is_split_at_the_first_double_dash(words: list[str]) -> None:
    own, rest = split_passthrough(words)
    assert "--" not in own
    assert own + (["--"] if "--" in words else []) + rest == words


@given(items=st.lists(st.one_of(any_text, st.builds("{}={}".format, names, any_text)), max_size=4))
def test_any_policy_flags_are_a_table_or_refused(items: list[str]) -> None:
    tally.hostile("command lines")
    table, refusal = attempt(lambda: policies_from_flags("--policy", items), ConfigError)
    if table is None:
        assert_sentence(refusal)
    else:
        assert len(table) == len(items)


flags = st.sampled_from(["--policy", "--prot", "--port", "-p", "--weights-store", "-", "=", "1"])


@given(
    command=st.sampled_from([command.name for command in COMMANDS if command.name != "bench"]),
    words=st.lists(st.one_of(flags, any_text).filter(lambda word: word not in ("-h", "--help"))),
)
def test_any_command_line_ends_with_a_sentence_and_a_code(
    capsys: pytest.CaptureFixture[str], command: str, words: list[str]
) -> None:
    """The configuration does not exist, so that no command starts anything."""
    tally.hostile("command lines")
    code = main([command, "/nonexistent/mixture.yaml", *words])
    told = capsys.readouterr()
    assert code in (1, 2)
    assert told.err.startswith("prefmix: error: ")
    assert "Traceback" not in told.err


# --- inputs of a fit -----------------------------------------------------------------------------

prompt_lines = st.one_of(
    any_json.map(json.dumps),
    st.dictionaries(st.sampled_from(["prompt", "messages", "id"]), any_json).map(json.dumps),
    plain_text,
    st.sampled_from(["[" * 100_000, '{"prompt": ' + "9" * 5000 + "}", '{"prompt": "a"}']),
)


@given(lines=st.lists(prompt_lines, max_size=4), tail=st.binary(max_size=4))
def test_any_prompts_file_is_read_or_refused(tmp_path: Path, lines: list[str], tail: bytes) -> None:
    tally.hostile("prompts files")
    path = tmp_path / "p.jsonl"
    path.write_bytes("\n".join(lines).encode(errors="surrogatepass") + tail)
    prompts, refusal = attempt(lambda: read_prompts(path), PromptsError)
    if prompts is None:
        assert_sentence(refusal)
    else:
        assert len({prompt.id for prompt in prompts}) == len(prompts)


columns = st.one_of(
    st.sampled_from(
        ["prompt_id", "response_id", "num_tokens", "logprob_reference", "logprob_a", "logprob_b",
         "reward_a", "proposal_logprob"]
    ),
    plain_text,
)  # fmt: skip
arrow_values = st.one_of(
    st.none(), st.floats(), st.integers(-(2**63), 2**63 - 1), plain_text, st.booleans()
)


@given(
    chosen=st.lists(columns, min_size=1, max_size=7, unique=True),
    num_rows=st.integers(0, 3),
    data=st.data(),
)
def test_any_table_is_a_score_table_or_refused(
    chosen: list[str], num_rows: int, data: st.DataObject
) -> None:
    tally.hostile("score tables")
    content: dict[str, Any] = {}
    for name in chosen:
        kind = data.draw(st.sampled_from([st.floats(), st.integers(0, 9), plain_text]))
        content[name] = data.draw(st.lists(kind, min_size=num_rows, max_size=num_rows))
    table, refusal = attempt(
        lambda: score_table.check(pa.table(content), source="s.parquet"), ScoreTableError
    )
    if table is None:
        assert_sentence(refusal)
    else:
        assert table.scores_NK.shape == (num_rows, len(table.names))
        assert np.isfinite(table.scores_NK).all()


@given(content=st.binary(max_size=200))
def test_any_file_is_a_score_table_or_refused(tmp_path: Path, content: bytes) -> None:
    tally.hostile("score tables")
    path = tmp_path / "s.parquet"
    path.write_bytes(b"PAR1" + content + b"PAR1")
    _, refusal = attempt(lambda: score_table.read(path), ScoreTableError)
    assert_sentence(refusal)


# --- ids and log lines ---------------------------------------------------------------------------


def account_of(header: str) -> Account:
    raw_request: Any = SimpleNamespace(headers={"x-request-id": header}, state=SimpleNamespace())
    return Account(raw_request)


@given(header=any_text)
def test_any_request_id_is_short_and_printable(header: str) -> None:
    tally.hostile("request ids")
    request_id = account_of(header).request_id()
    assert 0 < len(request_id) <= 128
    assert request_id.isascii()
    assert request_id.isprintable()


@given(header=any_text, profile=names, seconds=st.one_of(st.none(), st.floats(0, 1e9)))
@pytest.mark.parametrize("form", ["json", "text"])
def test_every_request_is_one_line_of_log(
    capsys: pytest.CaptureFixture[str],
    form: Any,
    header: str,
    profile: str,
    seconds: float | None,
) -> None:
    """Any client's request id gives one line; in JSON all fields can be read back."""
    tally.hostile("log lines")
    request_id = account_of(header).request_id()
    fields = {"request_id": request_id, "profile": profile, "duration_s": seconds}
    request_log.set_up(form)
    capsys.readouterr()
    try:
        request_log.write(**fields)
    finally:
        logging.getLogger("prefmix.requests").handlers = []
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.endswith("\n")
    if form == "json":
        assert json.loads(told)["request_id"] == request_id
