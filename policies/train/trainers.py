"""The trainers as stages: each trains, saves into a folder and reports its losses."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, TrainingArguments, set_seed

from prefmix.policies.data.pairs import Rows
from prefmix.policies.data.tokens import encode, encode_text
from prefmix.policies.rewards.reward import Answers, Reward
from prefmix.policies.safe_files import loading
from prefmix.policies.train.checkpoints import (
    load_policy,
    lora_config,
    save_policy,
    steps_done,
    train,
)
from prefmix.policies.train.inputs import EVALUATION
from prefmix.policies.train.maximum_trainer import (
    ROLES,
    MaximumPreferenceTrainer,
    PlannedExamples,
    collate,
)
from prefmix.policies.train.progress import without_warnings
from prefmix.policies.train.settings import (
    DirectSettings,
    MaximumSettings,
    MixedSettings,
    TrainSettings,
)
from prefmix.policies.train.trackers import tracker_arguments

Facts = dict[str, Any]

_EXTRAS = ("trainer_state", "log_extra", "log_metric")
"""Further arguments that TRL gives to reward functions."""

# TRL's interface to vLLM, which is not used here.
warnings.filterwarnings("ignore", message="TRL currently supports vLLM versions")


def train_direct(
    settings: DirectSettings | MixedSettings,
    tokenizer: Any,
    data: Mapping[str, Rows],
    folder: Path,
    checkpoints: Path,
    *,
    final: bool,
) -> Facts:
    """DPO on the pairs; the base's log-probabilities are computed once, before training."""
    from trl import DPOConfig, DPOTrainer

    pairs = data["pairs"]
    set_seed(settings.seed)  # a new adapter is random
    trainer = DPOTrainer(
        model=load_policy(settings.base, allow_unsafe_weights=settings.allow_unsafe_weights),
        args=DPOConfig(
            **trainer_arguments(settings, checkpoints, settings.num_steps(len(pairs))),
            **evaluation_arguments(settings, data),
            beta=settings.beta,
            loss_type=["ipo" if getattr(settings, "loss", "") == "ipo" else "sigmoid"],
            max_length=settings.max_length,
            precompute_ref_log_probs=True,
        ),
        train_dataset=Dataset.from_list(list(pairs.rows)),
        eval_dataset=_evaluation_set(data),
        processing_class=tokenizer,
        peft_config=lora_config(settings),
    )
    facts = train(trainer, checkpoints)
    save_policy(trainer.model, settings, folder, final=final)
    return {"pairs": len(pairs), **facts}


def train_maximum(
    settings: MaximumSettings,
    tokenizer: Any,
    data: Mapping[str, Rows],
    folder: Path,
    checkpoints: Path,
) -> Facts:
    """Maximum Preference Optimization on pairs, SFT answers and texts."""
    length = {"max_length": settings.max_length}
    streams: dict[str, list[Any]] = {name: [] for name in ("pairs", "sft", "text", EVALUATION)}
    for what in data.keys() & {"pairs", EVALUATION}:
        for name, row in zip(data[what].names, data[what].rows, strict=True):
            answers = (row["chosen"], row["rejected"])
            streams[what].append(encode(tokenizer, name, row["prompt"], answers, **length))
    held_out = [dict(zip(ROLES, pair, strict=False)) for pair in streams.pop(EVALUATION)]
    if "sft" in data:
        for name, row in zip(data["sft"].names, data["sft"].rows, strict=True):
            streams["sft"] += encode(tokenizer, name, row["prompt"], [row["completion"]], **length)
    if "text" in data:
        streams["text"] = [
            encode_text(tokenizer, str(r["text"]), **length) for r in data["text"].rows
        ]
    steps = settings.num_steps(len(data["pairs"]))
    num_pairs = steps * settings.batch_pairs * settings.accumulate

    set_seed(settings.seed)
    model = load_policy(settings.base, allow_unsafe_weights=settings.allow_unsafe_weights)
    if settings.lora_rank:
        from peft import get_peft_model

        model = get_peft_model(model, lora_config(settings))
    if settings.gradient_checkpointing:
        model.enable_input_require_grads()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trainer = MaximumPreferenceTrainer(
        settings,
        model=model,
        args=TrainingArguments(
            **trainer_arguments(settings, checkpoints, steps),
            **evaluation_arguments(settings, data),
            prediction_loss_only=True,
            remove_unused_columns=False,
        ),
        eval_dataset=held_out or None,
        train_dataset=PlannedExamples(streams, num_pairs, seed=settings.seed),
        data_collator=lambda items: collate(items, pad_id=tokenizer.pad_token_id),
    )
    facts = train(trainer, checkpoints)
    save_policy(trainer.model, settings, folder, final=True)
    return {"pairs": len(data["pairs"]), **facts}


def train_reward_model(
    settings: MixedSettings,
    tokenizer: Any,
    data: Mapping[str, Rows],
    folder: Path,
    checkpoints: Path,
) -> Facts:
    """TRL's RewardTrainer on all pairs; always a full checkpoint."""
    from trl import RewardConfig, RewardTrainer

    pairs = data["pairs"]
    set_seed(settings.seed)  # its head is random
    with without_warnings():  # it warns that there is no head yet
        model = AutoModelForSequenceClassification.from_pretrained(
            settings.base,
            num_labels=1,
            dtype=torch.float32,
            **loading(settings.allow_unsafe_weights),
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    per_pass = len(pairs) / (settings.batch_pairs * settings.accumulate)
    steps = max(1, round(settings.reward_epochs * per_pass))
    arguments = trainer_arguments(settings, checkpoints, steps)
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            **arguments | {"learning_rate": settings.reward_learning_rate},
            **evaluation_arguments(settings, data),
            max_length=settings.max_length,
        ),
        train_dataset=Dataset.from_list(list(pairs.rows)),
        eval_dataset=_evaluation_set(data),
        processing_class=tokenizer,
        peft_config=lora_config(settings, task="SEQ_CLS"),
    )
    facts = train(trainer, checkpoints)
    model = trainer.model.merge_and_unload() if settings.lora_rank else trainer.model
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"pairs": len(pairs), **facts}


def train_online(
    settings: MixedSettings,
    tokenizer: Any,
    pairs: Rows,
    reward: Reward,
    start: Path,
    folder: Path,
    checkpoints: Path,
) -> Facts:
    """RLOO on the pairs' prompts, from the policy in `start` and with that policy as reference."""
    from trl import RLOOConfig, RLOOTrainer

    columns = pairs.columns

    def rewards(
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[list[int]],
        place: list[int],
        **of_trl: Any,
    ) -> list[float | None]:
        return reward.score(
            Answers(
                prompts=prompts,
                answers=completions,
                names=[f"an answer drawn for the prompt {str(each)[:60]!r}" for each in prompts],
                columns={name: [values[i] for i in place] for name, values in columns.items()},
                completion_ids=completion_ids,
                extras={name: of_trl[name] for name in _EXTRAS if name in of_trl},
            )
        )

    # The columns themselves stay here: a table would need one type for each.
    different: dict[str, dict[str, Any]] = {}
    for place, row in enumerate(pairs.rows):
        others = [values[place] for values in columns.values()]
        item = {"prompt": row["prompt"], "place": place}
        different.setdefault(repr((row["prompt"], others)), item)
    prompts = list(different.values())
    # With fewer prompts than a step needs, the trainer would end at once without an error.
    asked = prompts * math.ceil(settings.online_prompts / len(prompts))
    passes_done = steps_done(checkpoints) // (len(asked) // settings.online_prompts)

    class OnlineTrainer(RLOOTrainer):
        """Resumes in the middle of the order of prompts, where TRL begins the order anew."""

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            sampler = super()._get_train_sampler(dataset)
            for _ in range(passes_done):
                torch.randperm(sampler.num_samples, generator=sampler.generator)
            return sampler

    set_seed(settings.seed)
    arguments = trainer_arguments(settings, checkpoints, settings.online_steps) | {
        "learning_rate": settings.online_learning_rate,
        "per_device_train_batch_size": settings.online_prompts * settings.num_answers,
        "gradient_accumulation_steps": 1,
    }
    trainer = OnlineTrainer(
        # RLOO reads its reference from the policy's path, or copies its adapter.
        model=load_policy(settings.base, start, allow_unsafe_weights=settings.allow_unsafe_weights)
        if settings.lora_rank
        else load_policy(str(start)),
        reward_funcs=[rewards],
        args=RLOOConfig(
            **arguments,
            beta=settings.online_beta,
            num_generations=settings.num_answers,
            max_completion_length=settings.max_new_tokens,
            temperature=settings.temperature,
        ),
        train_dataset=Dataset.from_list(asked),
        processing_class=tokenizer,
    )
    facts = train(trainer, checkpoints)
    save_policy(trainer.model, settings, folder, final=True)
    return {"prompts": len(prompts), **facts}


def trainer_arguments(settings: TrainSettings, checkpoints: Path, steps: int) -> dict[str, Any]:
    """Arguments of every trainer, explicit where TRL's defaults differ from transformers'."""
    has_cuda = torch.cuda.is_available()
    return {
        "output_dir": str(checkpoints),
        "max_steps": steps,
        "per_device_train_batch_size": settings.batch_pairs,
        "gradient_accumulation_steps": settings.accumulate,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": settings.warmup_steps,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "bf16": settings.precision == "bfloat16",
        "use_cpu": not has_cuda,
        "dataloader_pin_memory": has_cuda,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "logging_steps": settings.log_steps,
        "logging_first_step": True,
        "save_steps": settings.save_steps,
        "save_total_limit": 1,
        **tracker_arguments(settings, checkpoints.stem),
    }


def evaluation_arguments(settings: TrainSettings, data: Mapping[str, Rows]) -> dict[str, Any]:
    """Arguments of a trainer that evaluates on held-out pairs; none without any."""
    if EVALUATION not in data:
        return {}
    return {
        "eval_strategy": "steps",
        "eval_steps": settings.eval_steps,
        "per_device_eval_batch_size": settings.batch_pairs,
    }


def _evaluation_set(data: Mapping[str, Rows]) -> Any:
    return Dataset.from_list(list(data[EVALUATION].rows)) if EVALUATION in data else None
