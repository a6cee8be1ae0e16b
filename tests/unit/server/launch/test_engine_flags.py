"""vLLM's flags that can load code are refused, and every flag of this vLLM is classified."""

from __future__ import annotations

import dataclasses
import importlib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefmix.server.config.errors import CommandError
from prefmix.server.config.serve_config import ServeConfig
from prefmix.server.launch import in_process
from prefmix.server.launch.engine_flags import (
    CHECKED_ELSEWHERE,
    SAFE_VALUES,
    UNSAFE_FLAGS,
    check_flags,
)
from prefmix.server.launch.mixture_flags import REFUSED
from prefmix.server.launch.safe_flags import SAFE_FIELDS, SAFE_FLAGS

pytestmark = pytest.mark.usefixtures("vllm")

PLUGIN = """from pathlib import Path
Path({mark!r}).touch()
def a_pass(graph): ...
"""


def build(*passthrough: str, **fields: Any) -> Any:
    engine_args = importlib.import_module("prefmix.server.launch.engine_args")
    config = ServeConfig.model_validate({"policies": {"a": "org/a"}, **fields})
    return engine_args.build_arguments(config, config.spec(), passthrough)


def all_flags() -> dict[str, Any]:
    """Destination -> type hint of each flag that vLLM's parser has."""
    arg_utils = importlib.import_module("vllm.engine.arg_utils")
    cli_args = importlib.import_module("vllm.entrypoints.launchers.cli_args")
    argparse_utils = importlib.import_module("vllm.utils.argparse_utils")
    parser = argparse_utils.FlexibleArgumentParser()
    cli_args.make_arg_parser(parser)
    owners = (arg_utils.AsyncEngineArgs, cli_args.FrontendArgs)
    hints = {field.name: field.type for owner in owners for field in dataclasses.fields(owner)}
    return {action.dest: hints.get(action.dest) for action in parser._actions}


def dataclasses_in(hint: Any) -> Iterator[type]:
    """The dataclasses that a type hint names."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    elif isinstance(hint, types.UnionType) or typing.get_origin(hint) in (
        typing.Union,
        typing.Annotated,
    ):
        for each in typing.get_args(hint):
            yield from dataclasses_in(each)


def test_every_flag_of_vllm_is_either_allowed_or_named_unsafe() -> None:
    """Fails when vLLM has a flag that nobody has read: put it where it belongs."""
    engine_args = importlib.import_module("prefmix.server.launch.engine_args")
    lists = [SAFE_FLAGS, SAFE_FIELDS, UNSAFE_FLAGS, SAFE_VALUES, CHECKED_ELSEWHERE]
    lists += [engine_args._OWNED, REFUSED, ["help"]]
    flags = all_flags()
    assert len(flags) > 250
    for flag in flags:
        assert sum(flag in each for each in lists) == 1, f"{flag} is in no list, or in two"
    plain = {name for each in lists for name in each if "." not in name}
    assert plain - flags.keys() == set(), "flags that vLLM does not have"


def test_every_field_of_a_flag_that_holds_several_is_classified() -> None:
    flags = all_flags()
    for flag, fields in SAFE_FIELDS.items():
        (kind,) = dataclasses_in(flags[flag])
        known = {field.name for field in dataclasses.fields(kind) if field.init}
        unsafe = {
            name.partition(".")[2]
            for name in (*UNSAFE_FLAGS, *SAFE_VALUES)
            if name.startswith(f"{flag}.")
        }
        assert fields | unsafe == known, flag
        assert not fields & unsafe
    holding = {flag for flag, hint in flags.items() if [*dataclasses_in(hint)]}
    assert holding - SAFE_FIELDS.keys() - UNSAFE_FLAGS.keys() - REFUSED.keys() == set()


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """(a module that leaves a mark when it is imported, its mark)."""
    mark = tmp_path / "ran"
    path = tmp_path / "evil_plugin.py"
    path.write_text(PLUGIN.format(mark=str(mark)))
    monkeypatch.syspath_prepend(str(tmp_path))
    return path, mark


UNSAFE_WORDS = [
    ["--tool-parser-plugin", "{path}"],
    ["--reasoning-parser-plugin={path}"],
    ["--structured-outputs-config.reasoning_parser_plugin={path}"],
    ["--structured-outputs-config", '{{"reasoning_parser_plugin": "{path}"}}'],
    ["--logits-processors", "evil_plugin:Thing"],
    ["--logits_processors=evil_plugin:Thing"],
    ["--worker-cls", "evil_plugin.Worker"],
    ["--worker-extension-cls", "evil_plugin.Worker"],
    ["--worker-ext", "evil_plugin.Worker"],
    ["--scheduler-cls", "evil_plugin.Scheduler"],
    ["--middleware", "evil_plugin.middleware"],
    ["--io-processor-plugin", "evil"],
    ["--model-class-overrides", '{{"A": "evil_plugin:Model"}}'],
    ["--trust-remote-code"],
    ["--tool-server", "demo"],
    ["--log-config-file", "{path}"],
    ["--logging-config.pylogging_config_file", "{path}"],
    ["--distributed-executor-backend", "evil_plugin.Executor"],
    ["--data-parallel-address", "203.0.113.5"],
    ["--master-addr", "203.0.113.5"],
    ["--kv-transfer-config", '{{"kv_connector": "X", "kv_connector_module_path": "evil_plugin"}}'],
    ["--kv-transfer-config.kv_connector_extra_config.spec_module_path", "evil_plugin"],
    ["--ec-transfer-config.ec_connector_module_path", "evil_plugin"],
    ["--ec-manager-config.encoder_cache_manager_cls", "evil_plugin.Manager"],
    ["-cc.backend", "evil_plugin.backend"],
    ["-cc.inductor_passes.mine", "evil_plugin.a_pass"],
    ["--compilation-config", '{{"inductor_passes": {{"mine": "evil_plugin.a_pass"}}}}'],
    ["--compilation-config.cache_dir", "{path}"],
    ["--weight-transfer-config", '{{"backend": "ipc"}}'],
]


@pytest.mark.filterwarnings("ignore:--log-config-file is deprecated")
@pytest.mark.parametrize("words", UNSAFE_WORDS, ids=" ".join)
def test_flags_that_can_load_code_are_refused_before_they_do(
    words: list[str], plugin: tuple[Path, Path]
) -> None:
    path, mark = plugin
    with pytest.raises(CommandError, match="--allow-unsafe-engine-flags") as caught:
        build(*(word.format(path=path) for word in words))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert not mark.exists(), "the plugin was imported"


@pytest.mark.parametrize(
    "engine",
    [
        {"tool_parser_plugin": "file.py"},
        {"tool-parser-plugin": "file.py"},
        {"trust_remote_code": True},
        {"logits_processors": ["m:C"]},
        {"max_model_len": ["64", "--worker-cls", "m.C"]},
        {"kv_transfer_config": {"kv_connector": "X", "kv_connector_module_path": "m"}},
        {"compilation_config": {"backend": "m.backend"}},
    ],
)
def test_the_same_holds_for_the_file(engine: dict[str, Any]) -> None:
    with pytest.raises(CommandError, match="--allow-unsafe-engine-flags"):
        build(engine=engine)


def test_they_can_be_allowed(plugin: tuple[Path, Path]) -> None:
    path, _ = plugin
    args = build("--tool-parser-plugin", str(path), allow_unsafe_engine_flags=True)
    assert args.tool_parser_plugin == str(path)
    assert build("--trust-remote-code", allow_unsafe_engine_flags=True).trust_remote_code


@pytest.mark.parametrize(
    "words",
    [
        ["--max-model-len", "64", "-tp", "2", "--enforce-eager", "--dtype=float32"],
        ["-cc.mode=0", "-cc.cudagraph_mode", "NONE"],
        ["--compilation-config", '{"mode": 3, "custom_ops": ["+rms_norm"], "backend": "eager"}'],
        ["--kv-transfer-config", '{"kv_connector": "NixlConnector", "kv_role": "kv_both"}'],
        ["--structured-outputs-config.backend", "xgrammar", "--tool-call-parser", "hermes"],
        ["--attention-config.backend", "FLASH_ATTN", "--data-parallel-address", "127.0.0.1"],
        ["--distributed-executor-backend", "mp", "--worker-cls", "auto", "--no-trust-remote-code"],
        ["--logging-config.formatter", "json"],
        ["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 2}'],
    ],
    ids=" ".join,
)
def test_flags_that_load_none_pass(words: list[str]) -> None:
    build(*words)


def test_objects_of_python_are_checked_by_field() -> None:
    config = importlib.import_module("vllm.config")
    check_flags({"compilation_config": config.CompilationConfig(mode=0)}, {})
    for name, value in {
        "compilation_config": config.CompilationConfig(backend="m.backend"),
        "logits_processors": [object],
        "distributed_executor_backend": object,
        "a_flag_of_tomorrow": object(),
        "kv_transfer_config": object(),
    }.items():
        with pytest.raises(CommandError, match="--allow-unsafe-engine-flags"):
            check_flags({name: value}, {})


def test_fit_and_eval_take_no_such_flags_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_process, "import_vllm", lambda: None)
    for engine, words in (({"trust_remote_code": True}, []), ({}, ["--worker-cls", "m.C"])):
        config = ServeConfig.model_validate({"policies": {"a": "org/a"}, "engine": engine})
        with pytest.raises(CommandError, match="--allow-unsafe-engine-flags"):
            in_process.start_engine(config, config.spec(), words)
