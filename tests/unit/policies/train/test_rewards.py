"""Whatever a reward function does wrong, the row is named."""

import math
from pathlib import Path
from typing import Any

import pytest

from policies.train import TrainError
from policies.train.rewards import FunctionReward, load_function, load_reward

PROMPTS = ["p", "p", "p"]
ANSWERS = ["one", "two", "three"]
NAMES = ["pairs line 1", "pairs line 2", "pairs line 3"]


def _length(prompts: list[str], completions: list[str], **_: Any) -> list[int]:
    return [len(completion) for completion in completions]


def _raises(prompts: list[str], completions: list[str]) -> list[float]:
    return [1 / (len(completions[0]) - 5)]


def test_function_scores_each_row() -> None:
    assert FunctionReward(_length, "f").score(PROMPTS, ANSWERS, NAMES) == [3.0, 3.0, 5.0]


def test_row_that_raises_is_named() -> None:
    with pytest.raises(TrainError, match=r"pairs line 3: .* f raised ZeroDivisionError"):
        FunctionReward(_raises, "f").score(PROMPTS, ANSWERS, NAMES)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_row_without_a_finite_reward_is_named(value: float) -> None:
    def function(prompts: list[str], completions: list[str]) -> list[float]:
        return [value if completions == ["two"] else 0.0]

    with pytest.raises(TrainError, match=f"pairs line 2: the reward of f is {value}"):
        FunctionReward(function, "f").score(PROMPTS, ANSWERS, NAMES)


@pytest.mark.parametrize("returned", [None, 3.0, [], [1.0, 2.0], ["good"]])
def test_what_is_not_one_number_is_named(returned: Any) -> None:
    with pytest.raises(TrainError, match=r"pairs line 1: .* expected a list of one number"):
        FunctionReward(lambda **_: returned, "f").score(PROMPTS, ANSWERS, NAMES)


@pytest.mark.parametrize("spec", ["math:absent", "no_such_module:f", ":f"])
def test_function_that_is_not_there_is_refused(spec: str) -> None:
    with pytest.raises(TrainError, match="cannot import the reward function"):
        load_function(spec)
    with pytest.raises(TrainError, match="is a float, no function"):
        load_function("math:pi")


def test_folder_that_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="cannot load the reward model"):
        load_reward(str(tmp_path), max_length=8)
