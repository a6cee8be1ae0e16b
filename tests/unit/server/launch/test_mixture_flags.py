"""Every flag of vLLM is honoured, refused with a reason, or without effect on any answer."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import pytest

from prefmix.server.config.errors import CommandError
from prefmix.server.config.serve_config import ServeConfig
from prefmix.server.launch.engine_flags import UNSAFE_FLAGS, check_flags
from prefmix.server.launch.mixture_flags import (
    HONOURED,
    IDLE,
    LIMITED,
    REFUSED,
    TAKEN_VALUES,
    check_mixture_flags,
)
from support.architecture import ROOT

pytestmark = pytest.mark.usefixtures("vllm")

PAGE = ROOT / "docs" / "engine-flags.md"


def engine_args() -> Any:
    return importlib.import_module("prefmix.server.launch.engine_args")


def build(*passthrough: str, **fields: Any) -> Any:
    config = ServeConfig.model_validate({"policies": {"a": "org/a"}, **fields})
    return engine_args().build_arguments(config, config.spec(), passthrough)


def actions() -> dict[str, Any]:
    """Destination -> action of each flag that vLLM's parser has."""
    cli_args = importlib.import_module("vllm.entrypoints.launchers.cli_args")
    argparse_utils = importlib.import_module("vllm.utils.argparse_utils")
    parser = argparse_utils.FlexibleArgumentParser()
    cli_args.make_arg_parser(parser)
    return {action.dest: action for action in parser._actions}


def test_every_flag_of_vllm_has_one_meaning() -> None:
    """Fails when vLLM has a flag that nobody has read: find out what it does to a mixture."""
    flags = actions().keys() - {"help"}
    lists = [engine_args()._OWNED, REFUSED, LIMITED, IDLE, HONOURED]
    assert len(flags) > 250
    unclear = {flag: [flag in each for each in lists].count(True) for flag in flags}
    assert {flag: count for flag, count in unclear.items() if count != 1} == {}
    assert {name for each in lists for name in each} - flags == set(), "flags that vLLM has not"


def test_arguments_of_vllm_that_are_no_flags_are_refused() -> None:
    """They would reach the engine from Python only."""
    arg_utils = importlib.import_module("vllm.engine.arg_utils")
    fields = {field.name for field in dataclasses.fields(arg_utils.AsyncEngineArgs)}
    known = {*engine_args()._OWNED, *REFUSED, *LIMITED, *IDLE, *HONOURED}
    beside = {name for name in fields - known if not name.startswith("_")}
    assert beside == {"enable_mm_processor_stats", "mamba_config", "model_weights"}
    for name in beside:
        with pytest.raises(CommandError, match="unknown flag"):
            build(engine={name: "x"})
        with pytest.raises(CommandError, match="not among those"):
            check_flags({name: object()}, {})


@pytest.mark.parametrize("flag", sorted(REFUSED.keys() - {"grpc_port"}))
def test_a_flag_that_is_refused_says_why(flag: str) -> None:
    action = actions()[flag]
    name = next(word for word in action.option_strings if word.startswith("--"))
    values: dict[str, list[str]] = {
        "lora_modules": ["a=b"],
        "sleep_preserve_parameter_names": ["x"],
        "pooler_config": ['{"task": "embed"}'],
        "diffusion_config": ['{"canvas_length": 8}'],
        "engram_config": ['{"cpu_offload": true}'],
        "aux_output_config": ['{"enable_return_routed_experts": true}'],
        "profiler_config": ['{"delay_iterations": 2}'],
        "hf_config_path": ["elsewhere"],
        "cohere_format": ["cmd3"],
        "anthropic_disabled_thinking_effort": ["none"],
    }
    words = [name, *values.get(flag, [])]
    if flag == "cohere_is_reasoning_model":
        words = ["--no-cohere-is-reasoning-model"]
    with pytest.raises(CommandError) as caught:
        build(*words)
    assert caught.value.exit_code == 2
    assert REFUSED[flag] in str(caught.value)
    assert "\n" not in str(caught.value)
    engine = {flag.replace("_", "-"): values[flag][0]} if flag in values else {flag: True}
    if flag not in ("cohere_is_reasoning_model", "lora_modules", "sleep_preserve_parameter_names"):
        with pytest.raises(CommandError):
            build(engine=engine)


def test_defaults_that_are_spelled_out_are_taken() -> None:
    build("--no-enable-sleep-mode", "--no-skip-tokenizer-init", "--model-impl", "auto")
    build("--model-impl", "vllm")


@pytest.mark.parametrize("value", ["transformers", "terratorch"])
def test_values_that_replace_the_mixture_by_one_model_are_refused(value: str) -> None:
    with pytest.raises(CommandError, match="vLLM would look for the mixture itself") as caught:
        build("--model-impl", value)
    assert "give auto or vllm" in str(caught.value)


def test_objects_of_python_are_checked_as_flags_are() -> None:
    config = importlib.import_module("vllm.config")
    with pytest.raises(CommandError, match="--pooler-config is not accepted: pooling runs no"):
        check_mixture_flags({"pooler_config": config.PoolerConfig()}, {})
    check_mixture_flags({"attention_config": config.AttentionConfig()}, {})
    check_mixture_flags({"pooler_config": None}, {})


def test_the_page_is_made_of_these_lists() -> None:
    page = importlib.import_module("support.pages.flags_page")
    written = PAGE.read_text(encoding="utf-8")
    at = written.index(page.BEGIN)
    assert written[at:].rstrip() == page.flags_page().rstrip(), (
        "print it by support.pages.flags_page"
    )
    assert TAKEN_VALUES.keys() <= LIMITED.keys()
    assert all(flag in written for flag in UNSAFE_FLAGS if "." not in flag and "_" not in flag)


def test_the_page_is_where_readers_look() -> None:
    assert "engine-flags.md" in Path(ROOT, "docs", "serving.md").read_text(encoding="utf-8")
