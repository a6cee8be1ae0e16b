"""Configurations and requests are refused with the reason, and the engine goes on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefmix.mixing import wire
from prefmix.mixing.batch.request_mixing import RequestMixing
from prefmix.mixing.engine import request_limits
from prefmix.mixing.engine.scheduler import salt_for
from prefmix.mixing.spec import MixtureSpec, hf_overrides
from prefmix.mixing.ways_to_mix import MIXINGS
from support.engines import AdaptedBase, EngineFactory, spec_of_folders
from support.exactness import TOLERANCE_NATS, Job, Oracle, generate


@pytest.fixture(scope="module")
def llm(engine: EngineFactory, policies: list[Path]) -> Any:
    return engine(spec_of_folders(policies))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, 0.5], "2 weights came, expected 3"),
        ([1, 1, 1], "weights sum to 3"),
        ([1.5, -0.5, 0], "negative"),
        ([float("nan"), 0.5, 0.5], "expected a finite number"),
        ("uniform", "expected a list of 3 numbers"),
        (["1", 0, 0], "expected a number"),
    ],
)
def test_bad_vectors_are_refused_at_admission_and_the_engine_lives(
    llm: Any, policies: list[Path], weights: object, message: str
) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    params = SamplingParams(extra_args={wire.WEIGHTS_KEY: weights})
    with pytest.raises(VLLMValidationError, match=message):
        llm.generate([{"prompt_token_ids": [5, 6]}], params, use_tqdm=False)
    job = Job(prompt=(5, 6), weights=(0.2, 0.2, 0.6), max_tokens=3)
    assert Oracle(policies).worst_error([job], generate(llm, [job])) < TOLERANCE_NATS


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"allowed_token_ids": [5] * 1025}, "allowed_token_ids has 1025"),
        ({"stop_token_ids": list(range(129)), "min_tokens": 1}, "stop_token_ids has 1"),
        ({"seed": 2**63}, "seed is 9.22e"),
    ],
)
def test_what_the_samplers_buffers_do_not_hold_is_refused_and_the_engine_lives(
    llm: Any, policies: list[Path], fields: dict[str, Any], message: str
) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match=message):
        llm.generate([{"prompt_token_ids": [5, 6]}], SamplingParams(**fields), use_tqdm=False)
    job = Job(prompt=(5, 6), weights=(0.2, 0.2, 0.6), max_tokens=3)
    assert Oracle(policies).worst_error([job], generate(llm, [job])) < TOLERANCE_NATS


def test_the_first_request_is_checked_as_well(
    policies: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM loads the logits processor, and with it our checks, in the middle of that request."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.input_processor import InputProcessor

    def unchecked(self: InputProcessor) -> None:
        """Stands for vLLM's own method."""

    monkeypatch.setattr(InputProcessor, request_limits._PATCHED, False, raising=False)
    monkeypatch.setattr(InputProcessor, "process_inputs", unchecked)
    spec = spec_of_folders(policies)
    EngineArgs(model=spec.members[0].model, hf_overrides=hf_overrides(spec)).create_engine_config()
    assert InputProcessor.process_inputs.__wrapped__ is unchecked  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enable_prompt_embeds": True}, "prompt embeddings"),
        ({"pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"enable_lora": True}, "adapter"),
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
            "speculative decoding",
        ),
        ({"runner": "pooling"}, "pooling"),
        ({"kv_sharing_fast_prefill": True}, "fast prefill"),
    ],
)
def test_options_that_cannot_carry_weights_are_refused_at_start(
    policies: list[Path], options: dict[str, Any], message: str
) -> None:
    from vllm.engine.arg_utils import EngineArgs

    spec = spec_of_folders(policies)
    args = EngineArgs(model=spec.members[0].model, hf_overrides=hf_overrides(spec), **options)
    with pytest.raises(ValueError, match=message):
        args.create_engine_config()


def test_devices_that_were_never_tried_are_refused(
    policies: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As AMD's GPUs, for which the kernels compile and nothing else is known."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform

    from prefmix.mixing.engine.config_hook import UnsupportedEngineError, refuse_unsupported

    spec = spec_of_folders(policies)
    args = EngineArgs(model=spec.members[0].model, hf_overrides=hf_overrides(spec))
    config = args.create_engine_config()
    refuse_unsupported(config, spec)
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    with pytest.raises(UnsupportedEngineError, match=r"tried on \w+; use CPUs or NVIDIA GPUs"):
        refuse_unsupported(config, spec)


def test_a_shared_trunk_has_no_fused_all_reduce(adapted: AdaptedBase) -> None:
    """vLLM's kernel has room for the tokens of one policy, and asserts in the worker."""
    from vllm.engine.arg_utils import EngineArgs

    args = EngineArgs(
        model=str(adapted.base),
        hf_overrides=hf_overrides(adapted.spec()),
        compilation_config={"pass_config": {"fuse_allreduce_rms": True}},
    )
    with pytest.raises(ValueError, match="room for the tokens of one policy"):
        args.create_engine_config()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["UnknownForCausalLM"]}, r"'other' cannot .*UnknownForC.* for now\. \["),
        ({"max_position_embeddings": 64}, r"'other' cannot .*max_model_len \(512\) is greater"),
    ],
)
def test_what_vllm_refuses_of_a_member_names_it(
    policies: list[Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    from vllm.engine.arg_utils import EngineArgs

    other = tmp_path / "other"
    shutil.copytree(policies[0], other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, **changes}))
    spec = spec_of_folders([policies[0], other])
    args = EngineArgs(
        model=spec.members[0].model, hf_overrides=hf_overrides(spec), max_model_len=512
    )
    with pytest.raises(ValueError, match=message):
        args.create_engine_config()


@pytest.mark.parametrize(
    "connector",
    [
        {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
        {"kv_offloading_size": 0.25},
    ],
    ids=["connector", "offloading"],
)
def test_connectors_are_refused_where_members_share_a_cache(
    policies: list[Path], adapted: AdaptedBase, connector: dict[str, Any]
) -> None:
    from vllm.engine.arg_utils import EngineArgs

    for spec in (spec_of_folders(policies), adapted.spec()):
        args = EngineArgs(
            model=spec.checkpoints[0].model,
            hf_overrides=hf_overrides(spec),
            **connector,
        )
        if spec.base is None:
            args.create_engine_config()
        else:
            with pytest.raises(ValueError, match="no connector knows"):
                args.create_engine_config()


def test_experts_on_data_parallel_ranks_are_refused(tmp_path: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    from support.checkpoints.tiny_policies import save_policy

    folder = save_policy(
        tmp_path / "experts",
        seed=0,
        model_type="qwen3_moe",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
    )
    spec = spec_of_folders([folder])
    args = EngineArgs(model=str(folder), hf_overrides=hf_overrides(spec), data_parallel_size=2)
    with pytest.raises(ValueError, match="has experts"):
        args.create_engine_config()


def test_common_length_is_the_shortest_members(policies: list[Path], tmp_path: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    from support.checkpoints.tiny_policies import save_policy

    short = save_policy(tmp_path / "short", seed=5, max_position_embeddings=128)
    spec = spec_of_folders([policies[0], short])
    settings: dict[str, Any] = {
        "model": spec.members[0].model,
        "hf_overrides": hf_overrides(spec),
    }
    assert EngineArgs(**settings).create_engine_config().model_config.max_model_len == 128
    with pytest.raises(ValueError, match="128"):
        EngineArgs(**settings, max_model_len=512).create_engine_config()


def test_layer_names_off_is_refused_when_compiling(
    policies: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils import torch_utils

    monkeypatch.setattr(torch_utils, "_USE_LAYERNAME", False)
    spec = spec_of_folders(policies)
    settings: dict[str, Any] = {
        "model": spec.members[0].model,
        "hf_overrides": hf_overrides(spec),
    }
    with pytest.raises(ValueError, match="unset VLLM_USE_LAYERNAME"):
        EngineArgs(**settings).create_engine_config()
    EngineArgs(**settings, enforce_eager=True).create_engine_config()


def test_salts_keep_policies_apart_whatever_the_user_sends(adapted: AdaptedBase) -> None:
    spec = adapted.spec()
    vectors = [(1.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.3, 0.3, 0.4)]
    user_salts = [None, "x", "1/", "3/", "7/x", "1/x", f"p{'0000803f' + '00' * 8}/"]
    requests = [
        RequestMixing(weights_M=vector, mixes_parameters=mixes_parameters)
        for vector in vectors
        for mixes_parameters in (False, True)
    ]
    salts = [salt_for(spec, request, user) for request in requests for user in user_salts]
    assert len(set(salts)) == len(salts)
    one, other = (RequestMixing(weights_M=each) for each in ((0.9, 0.1, 0.0), (0.1, 0.9, 0.0)))
    assert salt_for(spec, one, None) == salt_for(spec, other, None)
    assert salt_for(spec, RequestMixing(weights_M=vectors[2]), None) is None


def test_mixed_parameters_share_blocks_with_their_exact_float32_weights(
    adapted: AdaptedBase,
) -> None:
    spec = adapted.spec()

    def salt(*weights: float) -> str | None:
        return salt_for(spec, RequestMixing(weights_M=weights, mixes_parameters=True), None)

    assert salt(0.1, 0.2, 0.7) == salt(0.1 + 1e-12, 0.2, 0.7)
    assert salt(0.1, 0.2, 0.7) != salt(0.1 + 1e-8, 0.2, 0.7)
    assert salt(1.0, 0.0, 0.0) != salt(0.0, 1.0, 0.0)


def test_engines_that_do_not_keep_blocks_apart_mix_no_parameters(adapted: AdaptedBase) -> None:
    """Another scheduler names no blocks: requests of other weights would read them."""
    from vllm import SamplingParams
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.import_utils import resolve_obj_by_qualname

    def processor(spec: MixtureSpec, **options: Any) -> Any:
        settings = {"model": str(adapted.base), "hf_overrides": hf_overrides(spec), **options}
        config = EngineArgs(**settings).create_engine_config()
        return resolve_obj_by_qualname(config.model_config.logits_processors[-1].replace(":", "."))

    spec = adapted.spec()
    foreign = {"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}
    for mixing in MIXINGS:
        asked = SamplingParams(extra_args=wire.to_extra_args((0.2, 0.3, 0.5), mixing))
        processor(spec).validate_params(asked)
        if mixing == "logits":
            processor(spec, **foreign).validate_params(asked)
        else:
            with pytest.raises(ValueError, match="would read the cache blocks"):
                processor(spec, **foreign).validate_params(asked)
    with pytest.raises(ValueError, match="would read the cache blocks"):
        processor(replace(spec, mixing="parameters"), **foreign)
