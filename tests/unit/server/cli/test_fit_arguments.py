"""The flags of `prefmix fit` that belong to rewards."""

from __future__ import annotations

import argparse
import re
from typing import Any

import pytest

from prefmix.server.cli.fit import add_arguments
from prefmix.server.cli.fit_arguments import (
    check_reward_flags,
    check_used_flags,
    importances_of,
    settings_from_flags,
)
from prefmix.server.config.errors import CommandError

PROMPTS = ["--prompts", "p.jsonl", "--output", "w.json"]
SMALLEST = ["--objective", "max-min-reward", "--reward", "kind=judges:kind"]


def read(*words: str, source: Any = PROMPTS) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args([*source, *words])
    check_reward_flags(args)
    return args


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--objective", "mean"], "--objective mean needs --reward NAME=REWARD"),
        (["--reward", "a=b:c"], "--reward is only used with --objective max-min-reward, mean, w"),
        ([*SMALLEST, "--sampler", "sequence"], "leave out --sampler sequence"),
        ([*SMALLEST, "--beta", "0.1"], "--beta is the KL coefficient of .* leave it out"),
        (["--beta", "0.1"], "--beta is the KL coefficient of .* leave it out"),
    ],
)
def test_rewards_belong_to_their_objectives(words: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        read(*words)


def test_a_table_of_scores_has_no_responses_to_judge() -> None:
    with pytest.raises(CommandError, match="leave out --scores"):
        read(*SMALLEST, source=["--scores", "s.parquet", "--output", "w.json"])


def test_importances_are_of_policies_or_of_rewards() -> None:
    args = read("--objective", "fixed", "--importance", "helpful=2")
    assert settings_from_flags(args).importances == {"helpful": 2}
    weighted = ["--objective", "weighted", "--reward", "kind=a:b", "--importance", "kind=3"]
    args = read(*weighted)
    assert settings_from_flags(args).importances is None
    assert importances_of(args) == {"kind": 3}
    assert importances_of(read(*SMALLEST)) is None
    with pytest.raises(CommandError, match="only used with --objective fixed or weighted"):
        importances_of(read(*SMALLEST, "--importance", "kind=3"))
    with pytest.raises(CommandError, match="--importance names 'kind' twice"):
        importances_of(read(*weighted, "--importance", "kind=1"))
    with pytest.raises(CommandError, match="names 'kidn', which is no --reward; there are: kind"):
        importances_of(read(*weighted, "--importance", "kidn=1"))
    with pytest.raises(CommandError, match="--objective weighted needs --importance"):
        importances_of(read(*weighted[:-2]))


@pytest.mark.parametrize(
    ("words", "unused"),
    [
        (["--steps", "9"], "--steps is for --scores and --sampler sequence or reference only"),
        (["--restarts", "1"], "--restarts is for --scores"),
        (["--sampler", "sequence", "--rounds", "3"], "--rounds is for --sampler mixture only"),
        (["--scores", "x.parquet", "--round-prompts", "3"], "--round-prompts is for --sampler"),
        (["--sampler", "reference", "--steps", "9", "--schedule", "constant"], None),
        (["--rounds", "3", "--round-prompts", "8"], None),
        (["--scores", "x.parquet", "--batch", "8"], None),
        (["--preset", "bsmd", "--rounds", "3"], "--rounds is for --sampler mixture only"),
    ],
)
def test_a_flag_that_the_sampler_does_not_read_is_refused(
    words: list[str], unused: str | None
) -> None:
    args = read(*words, source=["--output", "w.json"] if "--scores" in words else PROMPTS)
    if unused is None:
        check_used_flags(args)
        return
    with pytest.raises(CommandError, match=re.escape(unused)):
        check_used_flags(args)


def test_the_papers_algorithm_is_one_preset() -> None:
    settings = settings_from_flags(read("--preset", "bsmd", "--responses", "4", "--seed", "3"))
    descent = settings.descent
    assert (settings.sampler, settings.num_restarts, settings.num_responses) == ("reference", 1, 4)
    assert (descent.batch_prompts, descent.schedule, descent.averages) == (1, "constant", "all")
    assert (descent.is_corrected, descent.seed) == (False, 3)
    assert descent.step_size * descent.num_steps**0.5 == pytest.approx(10)
    for flag, value in (("--sampler", "sequence"), ("--batch", "8"), ("--step-size", "1")):
        with pytest.raises(CommandError, match=f"--preset bsmd has its own {flag}"):
            settings_from_flags(read("--preset", "bsmd", flag, value))
