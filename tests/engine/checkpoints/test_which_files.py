"""The engine reads what transformers reads of a folder that has its parameters twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from support.checkpoints.tiny_policies import VOCAB_SIZE
from support.engines import EngineFactory, spec_of_folders
from support.exactness import TOLERANCE_NATS, Oracle, generate, random_jobs


def test_an_index_counts_and_not_a_copy_in_mistrals_format(
    own_engine: EngineFactory, policies: list[Path], tmp_path: Path
) -> None:
    """vLLM by itself prefers files of that format, whatever their age."""
    folder = Path(shutil.copytree(policies[0], tmp_path / "listed"))
    part = "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(folder / part)
    tensors = load_file(folder / part)
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, part)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    stale = load_file(policies[1] / "model.safetensors")
    save_file(stale, folder / "consolidated.safetensors", metadata={"format": "pt"})
    folders = [folder, policies[2]]
    batch = random_jobs(4, num_members=2, vocab_size=VOCAB_SIZE, seed=0)
    outputs = generate(own_engine(spec_of_folders(folders)), batch)
    assert Oracle(folders).worst_error(batch, outputs) < TOLERANCE_NATS
