"""Starts of `prefmix serve` that fail, each with one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from support.checkpoints.tiny_faults import with_nan_logit
from support.checkpoints.tiny_policies import build_tokenizer, save_policy
from support.engines import AdaptedBase
from support.preloaded_server import Preloaded
from support.server_process import engine_flags, free_port, policy_flags, run_prefmix


def failure(*words: str, preloaded: Preloaded | None = None, **environment: str) -> str:
    """The one line of a start that fails with exit code 1; no value of `environment` shows."""
    run = run_prefmix("serve", *words, preloaded=preloaded, **environment)
    assert run.returncode == 1, run.stderr
    assert run.stdout == ""
    assert "Traceback" not in run.stderr
    assert [value for value in environment.values() if value in run.stderr] == []
    lines = run.stderr.splitlines()
    assert lines[-1].startswith("prefmix: error: "), run.stderr
    assert all(line.startswith("prefmix: ") for line in lines), run.stderr
    return lines[-1]


def test_different_tokenizers_are_refused_by_name(
    policies: list[Path], tmp_path: Path, preloaded: Preloaded
) -> None:
    other = save_policy(tmp_path / "other", seed=9, tokenizer=build_tokenizer(vocab_size=300))
    words = [*policy_flags(policies[0], other), "--port", str(free_port())]
    message = failure(*words, preloaded=preloaded)
    assert "'one' and 'other' cannot be mixed" in message


def test_a_checkpoint_cut_short_ends_the_start_before_the_engine(
    policies: list[Path], tmp_path: Path
) -> None:
    damaged = shutil.copytree(policies[1], tmp_path / "damaged")
    tensors = damaged / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:20_000])
    message = failure(*policy_flags(policies[0], damaged), "--port", str(free_port()))
    assert f"policy 'damaged': {tensors}: the file is cut short or damaged" in message


def test_a_damaged_checkpoint_ends_with_its_cause(
    policies: list[Path], tmp_path: Path, preloaded: Preloaded
) -> None:
    """The failure happens two processes away from the one that reports it, and no secret shows."""
    damaged = tmp_path / "damaged"
    shutil.copytree(policies[1], damaged)
    tensors = load_file(damaged / "model.safetensors")
    name = "model.layers.0.self_attn.o_proj.weight"
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, damaged / "model.safetensors", metadata={"format": "pt"})
    words = [*policy_flags(policies[0], damaged), "--port", str(free_port()), *engine_flags()]
    secrets = {
        "PREFMIX_API_KEY": "key-7d3a5512c0b94e8a",
        "PREFMIX_ADMIN_TOKEN": "admin-9f2b6c7d8e1a",
    }
    message = failure(*words, preloaded=preloaded, **secrets)
    assert "the server did not start: " in message
    assert "policy 'damaged': the tensor" in message, message
    assert name in message
    assert "config.json must belong to its parameters" in message


def test_a_policy_of_nan_ends_the_start(
    policies: list[Path], tmp_path: Path, preloaded: Preloaded
) -> None:
    bad = with_nan_logit(tmp_path / "bad", policies[1], token=11)
    words = [*policy_flags(policies[0], bad), "--port", str(free_port()), *engine_flags()]
    message = failure(*words, preloaded=preloaded)
    assert "the server did not start: policy 'bad' computes NaN or infinity" in message


def test_heads_that_attention_cannot_compute_end_the_start(
    policies: list[Path], tmp_path: Path, preloaded: Preloaded
) -> None:
    """The engine would start, and die at the first request."""
    narrow = save_policy(tmp_path / "narrow", seed=4, hidden=32, heads=2)
    words = [*policy_flags(policies[0], narrow), "--port", str(free_port()), *engine_flags()]
    message = failure(*words, preloaded=preloaded)
    assert "policy 'narrow' has heads of 16 numbers, and attention on a CPU takes 32, " in message


@pytest.mark.parametrize("kib", [10, 200])
def test_too_little_memory_for_the_kv_caches_says_what_to_do(
    policies: list[Path], kib: int, preloaded: Preloaded
) -> None:
    """The cache has no block at all, or too few for one text of the maximal length."""
    message = failure(
        *policy_flags(*policies[:2]),
        *("--port", str(free_port()), "--"),
        *("--dtype", "float32", "--max-model-len", "256", "--enforce-eager"),
        *("--kv-cache-memory-bytes", str(kib << 10)),
        preloaded=preloaded,
    )
    assert "--kv-cache-memory-bytes N" in message
    assert "gpu_memory_utilization" not in message


def test_an_option_that_cannot_be_mixed_is_refused(
    policies: list[Path], preloaded: Preloaded
) -> None:
    words = [*policy_flags(*policies[:2]), "--port", str(free_port()), *engine_flags()]
    assert "speculative" in failure(
        *words,
        '--speculative-config={"method": "ngram", "num_speculative_tokens": 2}',
        preloaded=preloaded,
    )


def test_a_damaged_adapter_is_refused_in_one_line(adapted: AdaptedBase, tmp_path: Path) -> None:
    broken = shutil.copytree(adapted.adapters[0], tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"{}")
    words = ["--base", str(adapted.base), "--adapter", f"broken={broken}"]
    message = failure(*words, "--port", str(free_port()), *engine_flags())
    file = broken / "adapter_model.safetensors"
    assert f"policy 'broken': {file}: the file is cut short or damaged" in message
