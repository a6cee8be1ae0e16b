"""vLLM's own hooks for an architecture's configuration run for the members of a mixture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from prefmix.mixing.checkpoints.compatibility import CompatibilityError
from prefmix.mixing.engine.config_hook import WORKER_EXTENSION
from prefmix.mixing.spec import MixtureSpec, hf_overrides, with_overrides
from support.checkpoints.tiny_policies import build_tokenizer, save_policy
from support.engines import RUNNER, AdaptedBase, spec_of_folders


def config_of(spec: MixtureSpec, **options: Any) -> Any:
    """vLLM's configuration of an engine, which is not started."""
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(
        model=spec.checkpoints[0].model,
        hf_overrides=hf_overrides(spec),
        **{"dtype": "float32", "enforce_eager": True, "max_model_len": 64, **options},
    ).create_engine_config()


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """hooks(architecture, change of the engine's config, change of the model's) sets a hook."""
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    def set_hook(architecture: str, change: Any, change_model: Any = lambda config: None) -> None:
        methods = {
            "verify_and_update_config": staticmethod(change),
            "verify_and_update_model_config": staticmethod(change_model),
        }
        hook = type("Hook", (VerifyAndUpdateConfig,), methods)
        monkeypatch.setitem(MODELS_CONFIG_MAP, architecture, hook)

    return set_hook


def sets(part: str, field: str, value: Any) -> Any:
    def change(config: Any) -> None:
        setattr(getattr(config, part), field, value)

    return change


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Policies of two architectures."""
    root = tmp_path_factory.mktemp("mixed")
    return [
        save_policy(root / "llama", seed=0),
        save_policy(root / "qwen", seed=1, model_type="qwen2"),
    ]


def test_a_wish_of_all_members_is_the_engines_setting(
    hooks: Any, policies: list[Path], adapted: AdaptedBase
) -> None:
    hooks("LlamaForCausalLM", sets("cache_config", "kv_cache_metrics_sample", 0.5))
    for spec in (spec_of_folders(policies), adapted.spec()):
        assert config_of(spec).cache_config.kv_cache_metrics_sample == 0.5


def test_kernels_and_graphs_may_be_one_members_wish(hooks: Any, mixed: list[Path]) -> None:
    hooks("Qwen2ForCausalLM", sets("attention_config", "flash_attn_version", 4))
    assert config_of(spec_of_folders(mixed)).attention_config.flash_attn_version == 4


def test_what_only_one_member_needs_is_refused(hooks: Any, mixed: list[Path]) -> None:
    hooks(
        "Qwen2ForCausalLM", sets("structured_outputs_config", "reasoning_parser", "openai_gptoss")
    )
    with pytest.raises(ValueError, match=r"reasoning_parser to 'openai_gptoss' for policy 'qwen'"):
        config_of(spec_of_folders(mixed))
    hooks("LlamaForCausalLM", sets("structured_outputs_config", "reasoning_parser", "qwen3"))
    with pytest.raises(ValueError, match="'llama' and 'qwen' need different engine settings"):
        config_of(spec_of_folders(mixed))


def test_a_change_of_one_members_model_is_refused(hooks: Any, mixed: list[Path]) -> None:
    def change(config: Any) -> None:
        config.model_config.hf_config.rope_theta = 7.0

    hooks("Qwen2ForCausalLM", change)
    with pytest.raises(ValueError, match=r"policy 'qwen' .* changes model_config"):
        config_of(spec_of_folders(mixed))


def test_each_members_model_config_has_its_own_hook(
    hooks: Any, mixed: list[Path], adapted: AdaptedBase
) -> None:
    from prefmix.mixing.models.loading import member_vllm_config

    def change(model_config: Any) -> None:
        model_config.hf_config.is_noted = True

    hooks("Qwen2ForCausalLM", lambda config: None, change)
    spec = spec_of_folders(mixed)
    config = config_of(spec)
    assert not hasattr(config.model_config.hf_config, "is_noted")
    noted = [
        hasattr(member_vllm_config(config, member, index=index).model_config.hf_config, "is_noted")
        for index, member in enumerate(spec.members)
    ]
    assert noted == [False, True]
    hooks("LlamaForCausalLM", lambda config: None, change)
    assert config_of(adapted.spec()).model_config.hf_config.is_noted, "as of a model alone"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"logprobs_mode": "raw_logits"}, "logits of a mixture have no zero point"),
        ({"logprobs_mode": "processed_logits"}, "logits of a mixture have no zero point"),
        ({"load_format": "sharded_state"}, "--load-format sharded_state reads one checkpoint"),
        ({"load_format": "runai_streamer"}, "--load-format runai_streamer reads one checkpoint"),
        ({"load_format": "dummy"}, "nothing says where the adapters belong"),
        *(
            (
                {"quantization": method, "dtype": "bfloat16"},
                "quantises a base while it loads it, .* drop --quantization",
            )
            for method in ("fp8_per_channel", "fp8", "mxfp8", "mxfp4")
        ),
        pytest.param(
            {"watermark_config": {"key": 12345}},
            "needs Triton, .* drop --watermark-config",
            marks=pytest.mark.skipif(RUNNER == "v2", reason="its kernels are interpreted"),
        ),
        ({"compilation_config": {"mode": 1}}, "compile the choice of policies"),
        ({"worker_extension_cls": "argparse.Namespace"}, "must be derived from prefmix"),
    ],
    ids=str,
)
def test_settings_under_which_a_mixture_would_be_wrong_are_refused(
    adapted: AdaptedBase, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        config_of(adapted.spec(), **options)


def test_the_engine_has_the_traits_of_every_policy(policies: list[Path], tmp_path: Path) -> None:
    """vLLM makes groups of ranks, and chooses kernels, by the engine's own model."""
    capped = save_policy(tmp_path / "capped", seed=3, model_type="gemma2")
    experts = save_policy(tmp_path / "experts", seed=4, model_type="mixtral", num_local_experts=4)
    plain = config_of(spec_of_folders(policies)).model_config
    mixed = config_of(spec_of_folders([policies[0], capped, experts])).model_config
    for config, cap, num_experts in ((plain, None, 0), (mixed, 50.0, 4)):
        assert getattr(config.hf_text_config, "attn_logit_softcapping", None) == cap
        assert config.get_num_experts() == num_experts
    with pytest.raises(ValueError, match="'one' is a model with a window for all layers"):
        config_of(
            with_overrides(spec_of_folders(policies), {"rswa_window": 8}),
        )


def test_a_format_that_one_policys_architecture_cannot_take_is_refused(
    policies: list[Path], tmp_path: Path
) -> None:
    """vLLM looks at the first policy alone."""
    gemma = save_policy(tmp_path / "gemma", seed=3, model_type="gemma3_text")
    for members in ([policies[0], gemma], [gemma, policies[0]]):
        config_of(spec_of_folders(members), dtype="bfloat16")
        with pytest.raises(ValueError, match=r"'gemma3_text' does not support float16"):
            config_of(spec_of_folders(members), dtype="float16")


@pytest.mark.parametrize("options", [{"convert": "embed"}, {"runner": "pooling"}], ids=str)
def test_pooling_is_refused(policies: list[Path], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"pooling|embed"):
        config_of(spec_of_folders(policies), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"logprobs_mode": "processed_logprobs"},
        {"load_format": "fastsafetensors"},
        {"load_format": "dummy"},
        {"quantization": "fp8_per_channel", "dtype": "bfloat16"},
        {"worker_extension_cls": WORKER_EXTENSION},
        {"disable_hybrid_kv_cache_manager": True},
    ],
    ids=str,
)
def test_their_other_values_are_taken(policies: list[Path], options: dict[str, Any]) -> None:
    config_of(spec_of_folders(policies), **options)


def test_another_tokenizer_must_have_the_policies_tokens(
    policies: list[Path], tmp_path: Path
) -> None:
    same, other = tmp_path / "same", tmp_path / "other"
    build_tokenizer().save_pretrained(same)
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(other)
    spec = spec_of_folders(policies)
    assert config_of(spec, tokenizer=str(same)).model_config.tokenizer == str(same)
    with pytest.raises(ValueError, match=r"the tokenizer '.*other' has other tokens than policy"):
        config_of(spec, tokenizer=str(other))
    with pytest.raises(ValueError, match=r"the tokenizer '.*nowhere' cannot be read"):
        config_of(spec, tokenizer=str(tmp_path / "nowhere"))


def test_policies_saved_in_different_formats_are_told(
    policies: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One engine has one format, by default that of the first policy."""
    from prefmix.mixing.engine import member_checks

    said: list[str] = []
    monkeypatch.setattr(
        member_checks.logger, "warning_once", lambda text, *words: said.append(text % words)
    )
    half = Path(shutil.copytree(policies[1], tmp_path / "half"))
    config = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    config_of(spec_of_folders(policies))
    assert said == []
    config_of(spec_of_folders([policies[0], half]))
    (line,) = said
    assert line.startswith(
        "policies 'one' and 'half' were saved in float32 and float16; all run in"
    )


def test_the_hooks_of_this_vllm_are_known_to_be_run() -> None:
    """An error of a hook, which is vLLM's own refusal, passes through."""
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from prefmix.mixing.models.loading import hook_of

    assert hook_of(["GptOssForCausalLM"]) is MODELS_CONFIG_MAP["GptOssForCausalLM"]
    assert hook_of(["LlamaForCausalLM"]) is None
    assert hook_of(None) is None
    assert issubclass(CompatibilityError, ValueError)
