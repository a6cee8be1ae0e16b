"""The flags that name the mixture's policies, shared by every command that takes a mixture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from prefmix.mixing.spec import VOCABULARY_RULES, WeightSpace


def add_mixture_arguments(
    parser: argparse.ArgumentParser, *, weight_space: bool = False, prompts: bool = False
) -> argparse._ArgumentGroup:
    """Adds CONFIG.yaml and the group "mixture".

    The group has the flags of `add_policy_flags`, --reference, --vocabulary, --defaults-from and
    --allow-unsafe-engine-flags.

    Args:
      weight_space: also --weight-space, for commands that use the configuration's profiles.
      prompts: also --system, for commands whose policies read prompts of their own.
    Returns: the group.
    """
    parser.add_argument(
        "config", nargs="?", type=Path, metavar="CONFIG.yaml", help="configuration file"
    )
    group = parser.add_argument_group("mixture")
    add_policy_flags(group)
    group.add_argument(
        "--reference",
        metavar="NAME=MODEL",
        help="the policy from which the others were aligned; with --base, the base itself",
    )
    group.add_argument(
        "--vocabulary",
        choices=VOCABULARY_RULES,
        help="same: all policies have the same tokens; prefix: some may have added tokens behind "
        "the others' last one (default); common: added tokens may differ anywhere. Tokens that "
        "differ are never drawn",
    )
    group.add_argument(
        "--defaults-from",
        metavar="NAME",
        help="the policy whose files give tokenizer, chat template, end tokens and defaults of "
        "generation; default: the first policy, or the base",
    )
    group.add_argument(
        "--allow-unsafe-engine-flags",
        action="store_true",
        default=None,
        help="also take flags of vLLM, from the file or after --, that can load and run any code",
    )
    if prompts:
        group.add_argument(
            "--system",
            action="append",
            metavar="NAME=TEXT",
            help="the system message that this policy alone reads before every conversation, or "
            "NAME=@FILE; repeat for each policy. With --base, a NAME that no other flag gives is "
            "the base itself",
        )
    if weight_space:
        group.add_argument(
            "--weight-space",
            choices=get_args(WeightSpace),
            help="simplex: non-negative ratios (default); affine: any numbers that sum to 1, of "
            "which the reference takes what the others leave",
        )
    return group


def add_policy_flags(parser: argparse._ActionsContainer) -> None:
    """Adds --policy, --base, --adapter and --allow-unsafe-weights to a parser or a group."""
    add = parser.add_argument
    add(
        "--policy",
        action="append",
        metavar="NAME=MODEL",
        help="a policy that is a full checkpoint; repeat for each policy",
    )
    add("--base", metavar="MODEL", help="the one model of which all policies are LoRA adapters")
    add(
        "--adapter",
        action="append",
        metavar="NAME=PATH",
        help="a policy that is an adapter of --base (PEFT format); repeat for each policy",
    )
    add(
        "--allow-unsafe-weights",
        action="store_true",
        default=None,
        help="also load .bin and .pt checkpoints, which can run any code",
    )


def mixture_overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of ServeConfig that were given by the flags of `add_mixture_arguments`.

    Raises: ConfigError for a malformed flag or a missing folder.
    """
    from prefmix.server.config.model_paths import policies_from_flags, resolve_model
    from prefmix.server.config.prompt_settings import systems_from_flags

    overrides: dict[str, Any] = {}
    if args.policy is not None:
        overrides["policies"] = policies_from_flags("--policy", args.policy)
    if args.base is not None:
        overrides["base"] = {"model": resolve_model(args.base, folder=Path.cwd(), where="--base")}
    if args.adapter is not None:
        overrides["adapters"] = policies_from_flags("--adapter", args.adapter)
    if getattr(args, "reference", None) is not None:
        overrides["reference"] = policies_from_flags("--reference", [args.reference])
    if getattr(args, "system", None) is not None:
        overrides["systems"] = systems_from_flags(args.system)
    flags = (
        *("vocabulary", "defaults_from", "weight_space"),
        *("allow_unsafe_weights", "allow_unsafe_engine_flags"),
    )
    for field in flags:
        if getattr(args, field, None) is not None:
            overrides[field] = getattr(args, field)
    return overrides
