# ruff: noqa: RUF009 - a setting is dataclasses.field with its help
"""The settings of the methods: one frozen class each, whose fields are flags and YAML keys.

A field's help text lives in its metadata, because the command line shows it.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from prefmix.policies.data.sources import may_be_hub_id
from prefmix.policies.errors import SettingsError


def _setting(
    help_text: str,
    default: Any = MISSING,
    *,
    choices: tuple[str, ...] | None = None,
    adapter: Any = None,
) -> Any:
    """A field with its help. Args: adapter: the default for LoRA training, if it differs."""
    about = {"help": help_text, "choices": choices, "adapter": adapter}
    return field(default=default, metadata=about)


TRACKERS = ("tensorboard", "wandb", "trackio")
"""The programs that training can log to, named as their packages."""

HUB_SETTINGS = ("data", "eval_data")
"""The paths that may be hub ids."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The settings that all methods share."""

    method: ClassVar[str]

    base: str = _setting("model to start from: a folder or hub id")
    data: Path = _setting("preference pairs: a JSONL, JSON or Parquet file, a folder or hub id")
    output: Path = _setting("folder to write the policy into; must not exist")
    split: str | None = _setting("split of a folder or hub id; default: train", None)
    subset: str | None = _setting("configuration of a hub id, if it has several", None)
    eval_data: Path | None = _setting("pairs to evaluate on, never trained on; as --data", None)
    eval_split: str | None = _setting("split to evaluate on, of --eval-data or else --data", None)
    eval_share: float | None = _setting("share of the pairs to hold out and evaluate on", None)
    eval_steps: int = _setting("steps between evaluations; the last step has one, too", 100)
    report_to: str | None = _setting(
        "where TRL logs to as well: tensorboard, wandb or trackio, or several with commas", None
    )
    seed: int = _setting("seed of the pairs' order, the initial adapter and the sampling", 0)
    epochs: float = _setting("passes over the pairs", 1.0)
    steps: int | None = _setting("optimiser steps, in place of --epochs", None)
    batch_pairs: int = _setting("pairs in one forward pass", 8)
    accumulate: int = _setting("forward passes in one step", 1)
    learning_rate: float = _setting(
        "highest learning rate of AdamW; it falls linearly to 0", 5e-6, adapter=5e-5
    )
    warmup_steps: int = _setting("steps that raise the learning rate from 0", 0)
    max_length: int = _setting("most tokens of prompt and answer; longer pairs are cut", 1024)
    lora_rank: int = _setting("rank of a LoRA adapter; 0 trains all parameters", 0)
    lora_alpha: float | None = _setting(
        "LoRA's scale times its rank; default: twice the rank", None
    )
    merge: bool = _setting("write a full checkpoint instead of the adapter", False)
    precision: str = _setting(
        "precision of the forward pass; parameters stay float32",
        "float32",
        choices=("float32", "bfloat16"),
    )
    gradient_checkpointing: bool = _setting("use less memory and more time", False)
    save_steps: int = _setting("steps between checkpoints to resume from", 100)
    log_steps: int = _setting("steps between logged losses", 10)
    allow_unsafe_weights: bool = _setting(
        "also load .bin and .pt checkpoints, which can run any code", False
    )

    def __post_init__(self) -> None:
        """Checks ranges."""
        positive = ["batch_pairs", "accumulate", "learning_rate", "max_length", "epochs"]
        positive += ["save_steps", "log_steps", "eval_steps"]
        self._check(positive, lambda x: x > 0, "positive")
        self._check(["eval_share"], lambda x: x is None or 0 < x < 1, "between 0 and 1")
        if self.eval_share is not None and (self.eval_data or self.eval_split):
            raise SettingsError("eval_share holds out pairs of data; leave it or eval_data out")
        for name in self.trackers:
            if name not in TRACKERS:
                raise SettingsError(f"report_to names {name!r}; allowed: {', '.join(TRACKERS)}")
        self._check(["seed", "warmup_steps", "lora_rank"], lambda x: x >= 0, "0 or more")
        self._check(["steps", "lora_alpha"], lambda x: x is None or x > 0, "positive")
        if self.lora_rank == 0 and (self.merge or self.lora_alpha is not None):
            raise SettingsError("merge and lora_alpha are about an adapter; add lora_rank")

    def _check(self, names: list[str], is_good: Callable[[Any], bool], allowed: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not is_good(value):
                raise SettingsError(f"{name} is {value}; it must be {allowed}")

    @property
    def trackers(self) -> list[str]:
        """The names in `report_to`."""
        return [name.strip() for name in (self.report_to or "").split(",") if name.strip()]

    def num_steps(self, num_pairs: int) -> int:
        """Optimiser steps over a number of pairs."""
        if self.steps is not None:
            return self.steps
        return max(1, round(self.epochs * num_pairs / (self.batch_pairs * self.accumulate)))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        values = dataclasses.asdict(self)
        return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}


@dataclass(frozen=True, kw_only=True)
class DirectSettings(TrainSettings):
    """The settings of `dpo`."""

    method = "dpo"

    beta: float = _setting("factor of the log ratios to the base model", 0.1)
    loss: str = _setting(
        "sigmoid is DPO's, ipo its squared variant", "sigmoid", choices=("sigmoid", "ipo")
    )

    def __post_init__(self) -> None:
        """Checks ranges."""
        super().__post_init__()
        self._check(["beta"], lambda x: x > 0, "positive")


@dataclass(frozen=True, kw_only=True)
class MaximumSettings(TrainSettings):
    """The settings of `maximum-preference`."""

    method = "maximum-preference"

    scale: float = _setting("factor of the log-probability difference in the sigmoid", 0.1)
    sft_data: Path | None = _setting("answers to stay close to: prompt, completion", None)
    sft_weight: float = _setting("factor of the answers' log-probability in nats; 0 for none", 0.02)
    text_data: Path | None = _setting("pre-training text to remember: text", None)
    text_weight: float = _setting("factor of the text's log-probability in nats", 0.02)

    def __post_init__(self) -> None:
        """Checks ranges, and that a regulariser was chosen or explicitly left out."""
        super().__post_init__()
        self._check(["scale"], lambda x: x > 0, "positive")
        self._check(["sft_weight", "text_weight"], lambda x: x >= 0, "0 or more")
        if self.sft_data is None and self.sft_weight:
            raise SettingsError(
                "maximum-preference needs sft_data, answers of the base model or those it learned "
                "from, because nothing else keeps the policy near it; sft_weight 0 does without"
            )


@dataclass(frozen=True, kw_only=True)
class MixedSettings(TrainSettings):
    """The settings of `mixed-preference`; the inherited steps are those of the DPO stage."""

    method = "mixed-preference"

    reward: str | None = _setting(
        "reward model: a checkpoint, module:function or file.py:function; default: some are "
        "trained on the pairs, and none judges pairs that it was trained on",
        None,
    )
    reward_epochs: float = _setting("passes over the pairs in the reward model's training", 1.0)
    reward_learning_rate: float = _setting(
        "learning rate of the reward model's training", 1e-5, adapter=1e-4
    )
    threshold: float | None = _setting("reward gap from which a pair counts as easy", None)
    quantile: float = _setting(
        "share of the pairs that count as difficult, if no threshold is given", 0.5
    )
    beta: float = _setting("DPO's factor of the log ratios", 0.1)
    online_steps: int = _setting("optimiser steps of the online stage", 100)
    online_learning_rate: float = _setting("learning rate of the online stage", 1e-6, adapter=1e-5)
    online_beta: float = _setting("factor of the KL divergence from the DPO policy", 0.05)
    online_prompts: int = _setting("prompts in a step of the online stage", 4)
    num_answers: int = _setting("answers drawn for each prompt of the online stage", 4)
    max_new_tokens: int = _setting("longest answer", 256)
    temperature: float = _setting("temperature of the sampling", 1.0)

    def __post_init__(self) -> None:
        """Checks ranges."""
        super().__post_init__()
        positive = ["reward_epochs", "reward_learning_rate", "beta", "online_steps"]
        positive += ["online_learning_rate", "online_prompts", "max_new_tokens", "temperature"]
        self._check(positive, lambda x: x > 0, "positive")
        self._check(["online_beta"], lambda x: x >= 0, "0 or more")
        self._check(["num_answers"], lambda x: x >= 2, "2 or more: each is judged by the others")
        self._check(["quantile"], lambda x: 0 < x < 1, "between 0 and 1")


METHODS: dict[str, type[TrainSettings]] = {
    kind.method: kind for kind in (DirectSettings, MaximumSettings, MixedSettings)
}
"""Method name -> its settings class."""


def kind_of(setting: dataclasses.Field[Any], cls: type[TrainSettings]) -> type:
    """The type of a field's values other than None: int, float, str, bool or Path."""
    hint = typing.get_type_hints(cls)[setting.name]
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return typing.cast(type, hint)


def build(cls: type[TrainSettings], values: Mapping[str, Any]) -> TrainSettings:
    """Builds settings from the values of a file and of flags, by field name.

    If an adapter is trained, its defaults apply.
    Raises: SettingsError naming an unknown or missing key, or a value of the wrong kind.
    """
    known = {item.name: item for item in dataclasses.fields(cls)}
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise SettingsError(
                f"unknown setting {name!r}{hint}; 'prefmix train {cls.method} --help' lists them"
            )
    missing = [n for n, item in known.items() if item.default is MISSING and n not in values]
    if missing:
        raise SettingsError(f"{cls.method} needs {', '.join(missing)}, as flags or in --config")
    settings = {name: _convert(known[name], value, cls) for name, value in values.items()}
    if settings.get("lora_rank"):
        own = {name: item.metadata["adapter"] for name, item in known.items()}
        settings = {name: value for name, value in own.items() if value is not None} | settings
    return cls(**settings)


def resolve_paths(
    cls: type[TrainSettings], values: Mapping[Any, Any], folder: Path
) -> dict[Any, Any]:
    """The values of a file, with its paths resolved against `folder`, the folder of the file.

    `base` and `reward` may also be names: there, only values that start with a dot are paths. A
    value of `data` that looks like a hub id is a path if it exists.
    """
    paths = {item.name for item in dataclasses.fields(cls) if kind_of(item, cls) is Path}

    def is_path(name: Any, value: str) -> bool:
        if name in HUB_SETTINGS and may_be_hub_id(value):
            return (folder / value).exists()
        return name in paths or value.startswith(("./", "../"))

    return {
        name: str(folder / value) if isinstance(value, str) and is_path(name, value) else value
        for name, value in values.items()
    }


def _convert(item: dataclasses.Field[Any], value: Any, cls: type[TrainSettings]) -> Any:
    kind = kind_of(item, cls)
    if value is None and item.default is None:
        return None
    # YAML 1.1 reads 1e-6, without a point, as text.
    readable = {
        int: (int,),
        float: (int, float, str),
        Path: (str, Path),
        str: (str,),
        bool: (bool,),
    }
    try:
        if not isinstance(value, readable[kind]) or (kind is not bool and isinstance(value, bool)):
            raise ValueError
        converted = kind(value)
        if item.name in HUB_SETTINGS and str(value).startswith((".", "~")):
            converted = converted.expanduser().absolute()  # a path, which a hub id never looks like
    except ValueError:
        raise SettingsError(f"{item.name} is {value!r}; expected {_KIND_NAMES[kind]}") from None
    choices = item.metadata["choices"]
    if choices and converted not in choices:
        raise SettingsError(f"{item.name} is {value!r}; allowed: {', '.join(choices)}")
    return converted


_KIND_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    bool: "true or false",
}
