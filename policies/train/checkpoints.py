"""Checkpoints: loads the base, resumes a trainer, writes a policy for `prefmix serve`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    TrainerCallback,
)

from prefmix.policies.safe_files import loading
from prefmix.policies.train import TrainError
from prefmix.policies.train.progress import show_steps
from prefmix.policies.train.settings import TrainSettings

_FILE_MODE = 0o644
_TRAINER_STATE = "trainer_state.json"
_TIMES = ("step_time", "_runtime", "_per_second")


def load_tokenizer(base: str) -> Any:
    """The base's tokenizer, with a padding token.

    Raises: TrainError naming the base.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(base, error) from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(base: str) -> Any:
    """The base's config.

    Raises: TrainError naming the base.
    """
    try:
        return AutoConfig.from_pretrained(base, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(base, error) from None


def load_policy(
    base: str, adapter: Path | None = None, *, allow_unsafe_weights: bool = False
) -> Any:
    """The base in float32, with an adapter to train on if one is given."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, **loading(allow_unsafe_weights)
        )
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(base, error) from None
    if adapter is None:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter, is_trainable=True)


def lora_config(settings: TrainSettings, *, task: str = "CAUSAL_LM") -> Any:
    """PEFT's config of the adapter; None if all parameters are trained.

    The adapter changes every linear layer but the LM head, which a shared trunk does not adapt.
    """
    if not settings.lora_rank:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha or 2 * settings.lora_rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type=task,
    )


def train(trainer: Any, checkpoints: Path) -> dict[str, list[dict[str, float]]]:
    """Trains to the end, from the last complete checkpoint if there is one.

    Returns: `losses`, and `evaluations` if there were any: the logged entries.
    """
    show_steps(trainer, checkpoints.stem)
    trainer.add_callback(_LastStep())
    last = _last_complete(checkpoints)
    if last is not None:
        # RLOO's reference adapter, which RLOO copies anew. If transformers finds this folder, it
        # resumes from the reference adapter and not from the trained one.
        shutil.rmtree(Path(last) / "ref", ignore_errors=True)
    trainer.train(resume_from_checkpoint=last)
    history = trainer.state.log_history
    facts = {"losses": [_without_times(entry) for entry in history if "loss" in entry]}
    # The last one of a step: a run that is resumed there evaluates again.
    held_out = {entry["step"]: _without_times(entry) for entry in history if "eval_loss" in entry}
    return facts | ({"evaluations": list(held_out.values())} if held_out else {})


def _without_times(entry: Mapping[str, float]) -> dict[str, float]:
    """An entry without times, and sorted: both would differ between equal runs."""
    return {name: entry[name] for name in sorted(entry) if not name.endswith(_TIMES)}


def steps_done(checkpoints: Path) -> int:
    """Optimiser steps of the checkpoint from which `train` would resume."""
    last = _last_complete(checkpoints)
    if last is None:
        return 0
    state = json.loads((Path(last) / _TRAINER_STATE).read_text(encoding="utf-8"))
    return int(state["global_step"])


class _LastStep(TrainerCallback):
    """Logs the last step without a checkpoint: a trainer resumed from it takes one step more."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True
            control.should_save = False
            control.should_evaluate = args.eval_strategy == "steps"


def save_policy(model: Any, settings: TrainSettings, folder: Path, *, final: bool) -> None:
    """Writes the adapter or the full checkpoint.

    Args:
      final: true writes the base's dtype, and merges if the settings say so; false writes the
        parameters as trained, in float32.
    """
    is_adapter = settings.lora_rank > 0
    if is_adapter and final and settings.merge:
        model, is_adapter = model.merge_and_unload(), False
    if is_adapter:
        # RLOO keeps its reference as a second adapter, which is not part of the policy.
        model.save_pretrained(folder, selected_adapters=["default"])
        _sort_modules(folder / "adapter_config.json")
    else:
        base = load_config(settings.base)
        if final and base.dtype is not None:
            model = model.to(base.dtype)
        # Trainers change the padding token and more in both configs.
        model.config.pad_token_id = getattr(base, "pad_token_id", None)
        model.config.use_cache = getattr(base, "use_cache", True)
        model.generation_config = _generation_config(settings.base, model)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(settings.base).save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    for path in folder.iterdir():
        path.chmod(_FILE_MODE)


def _sort_modules(path: Path) -> None:
    """Sorts the target modules, whose order PEFT leaves to a set and so to chance."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _generation_config(base: str, model: Any) -> Any:
    try:
        return GenerationConfig.from_pretrained(base)
    except OSError:
        return GenerationConfig.from_model_config(model.config)


def _last_complete(checkpoints: Path) -> str | None:
    """The newest complete checkpoint; incomplete ones of a killed run are removed."""
    complete: list[tuple[int, Path]] = []
    for folder in checkpoints.glob("checkpoint-*"):
        try:
            state = json.loads((folder / _TRAINER_STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(folder)
        else:
            complete.append((int(state["global_step"]), folder))
    return str(max(complete)[1]) if complete else None


def _unreadable(base: str, error: Exception) -> TrainError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if base.startswith((".", "/", "~")) and not Path(base).is_dir():
        reason = (
            "there is no such folder"  # transformers would take the path for a repository's name
        )
    return TrainError(
        f"cannot read the base model {base!r} ({reason}); give a folder or hub id in Hugging Face "
        "layout"
    )
