"""vLLM's arguments as `prefmix serve` builds them, with vLLM's real parser."""

from __future__ import annotations

import importlib
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from prefmix.mixing.spec import CONFIG_KEY, MixtureSpec
from prefmix.server.config.errors import CommandError
from prefmix.server.config.serve_config import ServeConfig
from prefmix.server.launch.environment import check_entry_points

pytestmark = pytest.mark.usefixtures("vllm")


def build(*passthrough: str, **fields: Any) -> Namespace:
    engine_args = importlib.import_module("prefmix.server.launch.engine_args")
    policies = {"a": "org/a", "b": {"model": "org/b", "revision": "v2"}}
    config = ServeConfig.model_validate({"policies": policies, **fields})
    args: Namespace = engine_args.build_arguments(config, config.spec(), passthrough)
    return args


def refusal(*passthrough: str, **fields: Any) -> str:
    with pytest.raises(CommandError) as caught:
        build(*passthrough, **fields)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_both_plugins_are_found() -> None:
    check_entry_points()


def test_the_mixture_is_put_in() -> None:
    args = build(name="mix", host="0.0.0.0", port=1234)
    assert (args.model, args.revision, args.served_model_name) == ("org/a", None, ["mix"])
    assert (args.host, args.port) == ("0.0.0.0", 1234)
    assert args.hf_overrides["architectures"] == ["LogLinearMixtureForCausalLM"]
    spec = MixtureSpec.from_dict(args.hf_overrides[CONFIG_KEY])
    assert spec.policy_names == ("a", "b")
    assert spec.policies[1].revision == "v2"


def test_vllm_waits_longer_than_the_drain() -> None:
    assert build().shutdown_timeout == 40
    assert build(drain_timeout=0.5).shutdown_timeout == 10


def test_the_first_policys_revision_is_the_engines() -> None:
    assert build(policies={"a": {"model": "org/a", "revision": "v3"}}).revision == "v3"


def test_flags_pass_through_and_override_the_file() -> None:
    engine = {
        "max_model_len": 64,
        "enforce-eager": True,
        "enable_prefix_caching": False,
        "api_key": ["x", "y"],
        "default_chat_template_kwargs": {"thinking": True},
    }
    args = build("--max-model-len", "128", engine=engine)
    assert args.max_model_len == 128
    assert (args.enforce_eager, args.enable_prefix_caching) == (True, False)
    assert args.api_key == ["x", "y"]
    assert args.default_chat_template_kwargs == {"thinking": True}


def test_other_overrides_of_the_config_are_merged() -> None:
    args = build("--hf-overrides", '{"rope_theta": 5}')
    assert args.hf_overrides["rope_theta"] == 5
    assert CONFIG_KEY in args.hf_overrides
    assert build("--hf-overrides.rope_theta", "5").hf_overrides["rope_theta"] == 5


def test_overrides_of_one_policy_are_its_own() -> None:
    policies = {"a": {"model": "org/a", "hf_overrides": {"x": 1}}, "b": "org/b"}
    args = build("--hf-overrides", '{"x": 2, "y": 3}', policies=policies)
    assert (args.hf_overrides["x"], args.hf_overrides["y"]) == (1, 3)
    spec = MixtureSpec.from_dict(args.hf_overrides[CONFIG_KEY])
    assert [policy.hf_overrides for policy in spec.policies] == [{"x": 1, "y": 3}, {"x": 2, "y": 3}]


def test_tokenizer_and_defaults_of_generation_come_from_the_named_policy(tmp_path: Path) -> None:
    folder = str(tmp_path)
    policies = {"a": "org/a", "b": folder}
    args = build(policies=policies)
    assert (args.tokenizer, args.generation_config) == (None, "auto")
    args = build(policies=policies, defaults_from="a")
    assert (args.tokenizer, args.generation_config) == (None, "auto")
    args = build(policies=policies, defaults_from="b")
    assert (args.tokenizer, args.generation_config) == (folder, folder)
    assert args.model == "org/a"
    for words in (["--tokenizer", "x"], ["--tokenizer-revision", "x"], ["--generation-config=x"]):
        message = refusal(*words, policies=policies, defaults_from="b")
        assert f"{words[0].partition('=')[0]} and defaults_from are both given" in message


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--model", "x"], ["--model", "--policy"]),
        (["--model=x"], ["--model", "--policy"]),
        (["org/model"], ["'org/model'", "--policy"]),
        (["--served-model-name", "x"], ["--served-model-name", "--name"]),
        (["--served_model_name=x"], ["--served-model-name", "--name"]),
        (["--served-model", "x"], ["--served-model-name", "--name"]),
        (["--host", "x"], ["--host", "before '--'"]),
        (["--port", "5"], ["--port", "before '--'"]),
        (["--port", "8000"], ["--port", "before '--'"]),
        (["--shutdown-timeout", "5"], ["--shutdown-timeout", "--drain-timeout before '--'"]),
        (["--max-num-queued-reqs", "5"], ["--max-num-queued-reqs", "--max-waiting before '--'"]),
        (["--revision", "x"], ["--revision"]),
        (["--config", "x.yaml"], ["--config", "engine:"]),
        (["--grpc"], ["--grpc", "weights"]),
        (["--data-parallel-multi-port-external-lb"], ["--data-parallel-multi-port-external-lb"]),
        (["--hf-overrides", '{"architectures": ["X"]}'], ["--hf-overrides", "'architectures'"]),
        (["--hf-overrides", '{"prefmix": {}}'], ["--hf-overrides", "'prefmix'"]),
        (["--hf-overrides", '{"x": NaN}'], ["--hf-overrides", "JSON values"]),
        (["--hf-overrides.prefmix", "1"], ["--hf-overrides", "'prefmix'"]),
        (["--max-modl-len", "5"], ["--max-modl-len", "did you mean --max-model-len"]),
        (["--max-model-len", "many"], ["--max-model-len", "many"]),
        (["--enable-auto-tool-choice"], ["tool"]),
    ],
)
def test_flags_that_cannot_be_are_refused(words: list[str], parts: list[str]) -> None:
    message = refusal(*words)
    assert [part for part in parts if part not in message] == [], message


def test_every_flag_that_is_refused_alone_is_told() -> None:
    """In the words of a start, which tells the first one only."""
    engine_args = importlib.import_module("prefmix.server.launch.engine_args")
    engine = {"dtype": None, "max_model_len": 64, "trust_remote_code": True}
    words = ["--enforce-eager", "--grpc", "--api-key", "x", "y", "--max-modl-len", "5", "--port=1"]
    words += ["--hf-overrides", '{"prefmix": {}}']
    config = ServeConfig.model_validate({"policies": {"a": "org/a"}, "engine": engine})
    errors = engine_args.flag_errors(config, config.spec(), words)
    for told, alone in zip(
        errors[2:], (words[1:2], words[5:7], words[7:8], words[8:]), strict=True
    ):
        assert told == refusal(*alone)
    assert "engine.dtype is empty" in errors[0]
    assert "--trust-remote-code" in errors[1]
    good = config.model_copy(update={"engine": {"max_model_len": 64}})
    assert engine_args.flag_errors(good, good.spec(), ["--api-key", "x", "y"]) == []


@pytest.mark.parametrize(
    ("engine", "part"),
    [
        ({"model": "x"}, "--model"),
        ({"port": 5}, "--port"),
        ({"max_modl_len": 5}, "did you mean --max-model-len"),
        ({"max_model_len": None}, "engine.max_model_len is empty"),
        ({3: "x"}, "3"),
    ],
)
def test_engine_keys_that_cannot_be_are_refused(engine: dict[Any, Any], part: str) -> None:
    engine_args = importlib.import_module("prefmix.server.launch.engine_args")
    if 3 in engine:  # the configuration refuses it before
        with pytest.raises(CommandError, match=part):
            engine_args.engine_tokens(engine)
        return
    assert part in refusal(engine=engine)
