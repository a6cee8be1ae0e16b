"""Each member has the configuration that vLLM would give a model of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from prefmix.mixing.spec import MixtureSpec
from support.checkpoints.tiny_policies import VOCAB_SIZE
from support.engines import EngineFactory
from support.exactness import TOLERANCE_NATS, Oracle, generate, random_jobs

LINEAR = {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}
YARN = {
    "rope_parameters": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 10000.0,
    }
}
FLAT = {"rms_norm_eps": 0.5}


@pytest.mark.parametrize("overrides", [LINEAR, YARN, FLAT], ids=["linear", "yarn", "flat"])
def test_overrides_of_the_config_reach_every_member(
    engine: EngineFactory,
    mixture: tuple[MixtureSpec, list[Path]],
    tmp_path: Path,
    overrides: dict[str, Any],
) -> None:
    """vLLM's --hf-overrides, beside copies whose config.json says the same."""
    spec, folders = mixture
    overridden = []
    for folder in folders:
        copy = Path(shutil.copytree(folder, tmp_path / folder.name))
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, **overrides}))
        overridden.append(copy)
    batch = random_jobs(6, num_members=3, vocab_size=VOCAB_SIZE, seed=0)
    outputs = generate(engine(spec, hf_overrides=overrides), batch)
    assert Oracle(overridden).worst_error(batch, outputs) < TOLERANCE_NATS
    assert Oracle(folders).worst_error(batch, outputs) > 100 * TOLERANCE_NATS
