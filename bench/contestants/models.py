"""The models of a bench: random ones, made for the run in a temporary folder, or the user's own."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prefmix.mixing.checkpoints.safe_files import CheckpointFilesError, check_safe_models
from prefmix.mixing.spec import Policy
from prefmix.server.cli.mixture_arguments import add_policy_flags, mixture_overrides
from prefmix.server.config.errors import CommandError, ConfigError

if TYPE_CHECKING:
    from prefmix.bench.contestants.random_models import Shape

SIZES = {
    "tiny": (2, 64, 128, 2, 2, 512),
    "134m": (12, 768, 2048, 12, 12, 32_000),
    "242m": (14, 1024, 2730, 16, 16, 32_000),
    "1b": (16, 2048, 8192, 32, 8, 128_256),
    "8b": (32, 4096, 14_336, 32, 8, 128_256),
}
"""Llama-like shapes: layers, hidden, intermediate, heads, key-value heads, vocabulary."""

WITHOUT_FILES = ("1b", "8b")
"""Sizes whose random numbers are made while they are loaded, unless a flag says otherwise."""

LORA_RANK = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """The models that the contestants load."""

    policies: tuple[str, ...]
    """Full checkpoints; empty if only adapters are given."""
    base: str | None
    adapters: tuple[str, ...]
    """LoRA adapters of `base`, PEFT format."""
    average: str | None
    """The mean of the policies' parameters, as one model."""

    @property
    def most_policies(self) -> int:
        """The largest K that the models allow."""
        return max(len(self.policies), len(self.adapters))

    @property
    def one(self) -> str:
        """The model served alone."""
        model = self.policies[0] if self.policies else self.base
        assert model is not None
        return model


def add_model_flags(
    parser: argparse.ArgumentParser, *, size: str, needs_files: bool = False
) -> None:
    """Adds the flags that choose the models.

    Args:
      size: the default size of random models.
      needs_files: true if something reads them that cannot make random numbers itself.
    """
    group = parser.add_argument_group("models", "random ones of a size, or your own")
    add = group.add_argument
    add("--model-size", choices=SIZES, default=size, help=f"of random models; default {size}")
    add("--layers", type=int, help="override the size's number of layers")
    add("--hidden", type=int, help="override its width; heads of 64, inner width 8/3 of it")
    add("--vocab", type=int, help="override its vocabulary")
    if needs_files:
        parser.set_defaults(dummy_weights=False)
    else:
        add(
            "--dummy-weights",
            action=argparse.BooleanOptionalAction,
            default=None,
            help="make random numbers while loading instead of files, so that no disk is needed "
            f"(but for adapters); default for {' and '.join(WITHOUT_FILES)}. Texts are noise in "
            "any case",
        )
    add_policy_flags(group)


def has_dummy_weights(args: argparse.Namespace) -> bool:
    """True if random models have no files of parameters."""
    if args.policy or args.base or args.adapter:
        if args.dummy_weights:
            raise CommandError(
                "--dummy-weights is for random models; drop it, or --policy, --base and --adapter",
                exit_code=2,
            )
        return False
    if args.dummy_weights is None:
        return args.model_size in WITHOUT_FILES
    return bool(args.dummy_weights)


def shape_of_flags(args: argparse.Namespace) -> Shape:
    """The shape of the random models."""
    from prefmix.bench.contestants.random_models import Shape

    names = ("layers", "hidden", "intermediate", "heads", "kv_heads", "vocab")
    sizes = dict(zip(names, SIZES[args.model_size], strict=True))
    if args.hidden is not None:
        if args.hidden % 64:
            raise CommandError(
                f"--hidden is {args.hidden}; expected a multiple of 64, the width of a head",
                exit_code=2,
            )
        heads = args.hidden // 64
        inner = args.hidden * 8 // 3
        sizes |= {"hidden": args.hidden, "intermediate": inner, "heads": heads, "kv_heads": heads}
    sizes |= {name: value for name in ("layers", "vocab") if (value := getattr(args, name))}
    return Shape(**sizes)


def prepare_models(args: argparse.Namespace, folder: Path, *, num_policies: int) -> Models:
    """The user's models, or K random policies, a base with K adapters and the policies' average.

    Args:
      args: the flags of `add_model_flags` and --dtype.
      folder: where random models are written.
      num_policies: K, the most that a measurement needs.
    Raises: CommandError for models that do not exist or are too few.
    """
    if args.policy or args.base or args.adapter:
        return _given_models(args, num_policies)
    import torch

    from prefmix.bench.contestants.random_models import (
        build_tokenizer,
        save_adapter,
        save_average,
        save_model,
        save_shape,
    )

    config = shape_of_flags(args).config()
    tokenizer = build_tokenizer(vocab_size=config.vocab_size)
    dtype = getattr(torch, args.dtype)
    names = ["base", *(f"p{index}" for index in range(num_policies))]
    if has_dummy_weights(args):
        made = [save_shape(folder / name, config, tokenizer=tokenizer) for name in names]
        average = save_shape(folder / "average", config, tokenizer=tokenizer)
    else:
        made = [
            save_model(folder / name, config, seed=seed, dtype=dtype, tokenizer=tokenizer)
            for seed, name in enumerate(names)
        ]
        average = save_average(folder / "average", made[1:])
    base, *policies = made
    adapters = [
        save_adapter(folder / f"a{index}", base, rank=LORA_RANK, seed=index, dtype=dtype)
        for index in range(num_policies)
    ]
    return Models(
        policies=tuple(map(str, policies)),
        base=str(base),
        adapters=tuple(map(str, adapters)),
        average=str(average),
    )


def _given_models(args: argparse.Namespace, num_policies: int) -> Models:
    try:
        given = mixture_overrides(args)
    except ConfigError as error:
        raise CommandError(str(error), exit_code=2) from None
    if ("base" in given) != ("adapters" in given):
        raise CommandError("--base and --adapter go together; give both or neither", exit_code=2)
    models = Models(
        policies=tuple(entry["model"] for entry in given.get("policies", {}).values()),
        base=given["base"]["model"] if "base" in given else None,
        adapters=tuple(entry["model"] for entry in given.get("adapters", {}).values()),
        average=None,
    )
    if "allow_unsafe_weights" not in given:
        full = [*given.get("policies", {}).items(), *[("base", given.get("base"))]]
        try:
            check_safe_models(
                Policy(name=name, model=entry["model"]) for name, entry in full if entry
            )
        except CheckpointFilesError as error:
            raise CommandError(str(error)) from None
    if models.most_policies < num_policies:
        raise CommandError(
            f"--policies asks for {num_policies}, but {models.most_policies} are given; "
            "give more with --policy or --adapter",
            exit_code=2,
        )
    return models
