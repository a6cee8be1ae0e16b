"""The cards of a trained policy: provenance.json for programs, README.md for people."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefmix.policies.data.pairs import Rows
from prefmix.policies.train.settings import TrainSettings
from prefmix.policies.train.stages import told_course, told_evaluation

PACKAGES = ("torch", "transformers", "tokenizers", "trl", "peft", "accelerate", "datasets")

METHODS = {
    "dpo": "Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290), TRL's "
    "DPOTrainer.",
    "maximum-preference": "Maximum Preference Optimization (Jiang et al. 2023, arXiv 2312.16430), "
    "as described in its abstract; `policies/train/maximum_preference.py` says what is inferred.",
    "mixed-preference": "Mixed Preference Optimization (Gou and Nguyen 2024, arXiv 2403.19443): "
    "DPO on pairs of large reward gap, then online reinforcement learning on the prompts of the "
    "others with the DPO policy as reference. The paper's PPO is replaced by RLOO, because TRL "
    "no longer has PPO.",
}


def about(settings: TrainSettings, data: Mapping[str, Rows]) -> dict[str, Any]:
    """The identity of a run: its settings and the hashes of its data."""
    return {
        "settings": {"method": settings.method, **settings.to_dict()},
        "data": {name: {"sha256": r.sha256, "rows": len(r)} for name, r in data.items()},
    }


def write_cards(
    folder: Path, settings: TrainSettings, data: Mapping[str, Rows], stages: Mapping[str, Any]
) -> None:
    """Writes both cards into the policy's folder.

    Args:
      folder: folder of the policy.
      settings: settings of the run.
      data: rows of the run by name.
      stages: the report of each stage, losses included.
    """
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    provenance = {"format": 1, **about(settings, data), "versions": versions, "stages": stages}
    text = json.dumps(provenance, indent=2) + "\n"
    (folder / "provenance.json").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(_card(folder, settings, data, stages), encoding="utf-8")


def _card(
    folder: Path, settings: TrainSettings, data: Mapping[str, Rows], stages: Mapping[str, Any]
) -> str:
    is_adapter = (folder / "adapter_config.json").exists()
    what = f"LoRA adapter of {settings.base}" if is_adapter else "full checkpoint"
    flags = f"--base {settings.base} --adapter NAME=." if is_adapter else "--policy NAME=."
    rows = [f"- {name}: {len(r)} rows, sha256 `{r.sha256[:16]}`" for name, r in data.items()]
    losses = [
        f"- {name}: {told_course(facts['losses'])} at step {facts['losses'][-1]['step']}"
        for name, facts in stages.items()
        if facts.get("losses")
    ]
    losses += [
        f"- {name}, pairs held out: {told_evaluation(facts['evaluations'][-1])}"
        for name, facts in stages.items()
        if facts.get("evaluations")
    ]
    return "\n".join(
        [
            "---",
            f"library_name: {'peft' if is_adapter else 'transformers'}",
            f"base_model: {settings.base}",
            f"tags: [prefmix, {settings.method}]",
            "---",
            "",
            f"# {settings.output.name}",
            "",
            f"A {what}, trained from {settings.base} with `prefmix train {settings.method}`:",
            METHODS[settings.method],
            "",
            *rows,
            *losses,
            "",
            "`provenance.json` holds every setting, version, hash and logged loss. Losses are",
            "those of the training data where nothing else is said.",
            "",
            f"    prefmix serve {flags}",
            "",
        ]
    )
