"""Settings of single policies: overrides of one's config, and whose files give the defaults."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from prefmix import Mixture
from support.checkpoints.tiny_policies import VOCAB_SIZE, build_tokenizer
from support.engines import AdaptedBase
from support.exactness import TOLERANCE_NATS, Oracle, generate, random_jobs

ENGINE: dict[str, Any] = {"dtype": torch.float32, "enforce_eager": True, "max_model_len": 256}
LINEAR = {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}
TEMPLATE = "{% for each in messages %}{{ each.content }}>{% endfor %}"
CHAT = [{"role": "user", "content": "the weights"}]
END = 17
"""The token that ends an answer of the policy that the defaults are taken from."""


def save_own_files(folder: Path) -> None:
    """Another chat template, end token and default of generation than the other policies have."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(END)
    tokenizer.save_pretrained(folder)
    GenerationConfig(eos_token_id=END, temperature=0.5, do_sample=True).save_pretrained(folder)


def overridden(folder: Path, copy: Path, overrides: dict[str, Any]) -> Path:
    """A copy whose config.json has the overrides."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **overrides}))
    return copy


def check_defaults(mix: Mixture) -> None:
    """Checks that template, end token and temperature are those that `save_own_files` wrote."""
    llm = mix.llm
    written = llm.get_tokenizer().encode("the weights>")
    assert mix.engine.chat_tokens(CHAT) == tuple(written)
    assert llm.get_default_sampling_params().temperature == 0.5
    [output] = mix.generate(["the"], {"max_tokens": 20, "logit_bias": {END: 100.0}})
    assert output.outputs[0].finish_reason == "stop"
    assert list(output.outputs[0].token_ids) == [END]


def test_one_policys_config_and_another_ones_defaults(policies: list[Path], tmp_path: Path) -> None:
    one, two = policies[:2]
    own = Path(shutil.copytree(policies[2], tmp_path / "own"))
    save_own_files(own)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mix = Mixture(
            policies={"one": {"model": str(one), "hf_overrides": LINEAR}, "two": str(two)},
            reference={"own": {"model": str(own), "hf_overrides": {"rms_norm_eps": 0.5}}},
            defaults_from="own",
            hf_overrides={"rms_norm_eps": 1e-3},
            **ENGINE,
        )
    said = [str(each.message) for each in caught if "are used" in str(each.message)]
    assert any("end a text with different tokens ([17] and [1]); those of 'own'" in s for s in said)
    shared = {"rms_norm_eps": 1e-3}
    with mix:
        check_defaults(mix)
        batch = random_jobs(6, num_members=3, vocab_size=VOCAB_SIZE, seed=0)
        outputs = generate(mix.llm, batch)
        expected = [
            overridden(one, tmp_path / "1", {**shared, **LINEAR}),
            overridden(two, tmp_path / "2", shared),
            overridden(own, tmp_path / "3", {"rms_norm_eps": 0.5}),
        ]
        assert Oracle(expected).worst_error(batch, outputs) < TOLERANCE_NATS
        expected[1] = overridden(two, tmp_path / "4", {**shared, **LINEAR})
        assert Oracle(expected).worst_error(batch, outputs) > 100 * TOLERANCE_NATS


def test_an_adapters_files_give_the_defaults(adapted: AdaptedBase, tmp_path: Path) -> None:
    first = Path(shutil.copytree(adapted.adapters[0], tmp_path / "first"))
    save_own_files(first)
    with pytest.warns(UserWarning, match="those of 'first' are used"):
        mix = Mixture(
            base=adapted.base,
            adapters={"first": first, "second": adapted.adapters[1]},
            defaults_from="first",
            **ENGINE,
        )
    with mix:
        check_defaults(mix)
