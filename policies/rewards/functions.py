"""Rewards from Python functions in TRL's form, called with batches and checked row by row.

TRL calls `f(prompts=[...], completions=[...], completion_ids=[...], column=[...], ...)` and takes
one number an answer, or None where the reward does not apply.
Source: trl.RLOOTrainer._calculate_rewards (TRL 1.16).
"""

from __future__ import annotations

import asyncio
import inspect
import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from tqdm.auto import tqdm

from prefmix.policies.errors import TrainError
from prefmix.policies.rewards.reward import ARGUMENTS, Answers
from prefmix.policies.rewards.source_lines import line_of_definition, line_of_error

BATCH_ROWS = 32
"""The most answers in one call."""


class FunctionReward:
    """A function, or any object that can be called, in TRL's form.

    It is given what it asks for: the arguments that its signature names, or all if it has `**`. One
    that is async is awaited, all batches in one event loop, so that its clients can stay open.
    """

    def __init__(self, function: Callable[..., Any], label: str) -> None:
        """Args: label: the function's name, for messages."""
        self._function = function
        self._label = label
        self._parameters = _parameters(function)
        self._defined = line_of_definition(function)
        self._loop: asyncio.Runner | None = None

    def score(self, answers: Answers) -> list[float | None]:
        """See `Reward`."""
        self._check_columns(answers.columns)
        self._check_signature(answers)
        rewards: list[float | None] = []
        starts = range(0, len(answers), BATCH_ROWS)
        for start in tqdm(starts, desc="rewards", delay=2.0, leave=False, disable=None):
            rewards += self._batch(answers.part(start, start + BATCH_ROWS))
        return rewards

    def _check_columns(self, columns: Mapping[str, Any]) -> None:
        taken = next((name for name in ARGUMENTS if name in columns), None)
        if taken is not None:
            raise TrainError(
                f"the data has a column {taken!r}, but reward functions such as {self._label} get "
                "something else under that name; rename the column"
            )

    def _check_signature(self, answers: Answers) -> None:
        """Raises TrainError for a function that needs an argument which it is not given."""
        given = _available(answers.part(0, 1))
        names = [
            each.name
            for each in self._parameters or ()
            if each.default is each.empty
            and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
            and (each.kind is each.POSITIONAL_ONLY or each.name not in given)
        ]
        if names:
            raise TrainError(
                f"the reward function {self._label}{self._where} needs {' and '.join(names)}; it "
                f"is given, by name: {', '.join(given)}"
            )

    @property
    def _where(self) -> str:
        """The place of the function in the user's code, in parentheses."""
        return "" if self._defined is None else f" ({self._defined})"

    def _batch(self, batch: Answers) -> list[float | None]:
        try:
            returned = self._called(batch)
        except (Exception, SystemExit) as error:  # someone else's code may raise anything
            name = self._name_of_failing_row(batch, error)
            line = line_of_error(error) or self._defined
            raise TrainError(
                f"{name}: the reward function {self._label} raised {type(error).__name__}: "
                f"{' '.join(str(error).split())}{f' ({line})' if line else ''}"
            ) from error
        return self._checked(returned, batch)

    def _called(self, batch: Answers) -> list[Any] | str:
        """The values that the function returned, or a sentence's part on what it returned."""
        arguments = _available(batch)
        if self._parameters is not None and not any(
            each.kind is each.VAR_KEYWORD for each in self._parameters
        ):
            taken = {each.name for each in self._parameters}
            arguments = {name: value for name, value in arguments.items() if name in taken}
        result = self._function(**arguments)
        if inspect.isawaitable(result):
            result = self._awaited(result)
        return _listed(result)

    def _awaited(self, result: Any) -> Any:
        async def wait() -> Any:
            return await result

        if self._loop is None:
            self._loop = asyncio.Runner()
            weakref.finalize(self, self._loop.close)
        return self._loop.run(wait())

    def _name_of_failing_row(self, batch: Answers, error: BaseException) -> str:
        """The name of the first row that fails alone, too, else the names of the batch's ends."""
        whole = _names(batch)
        if len(batch) == 1:
            return whole
        for index in range(len(batch)):
            try:
                self._called(batch.part(index, index + 1))
            except (Exception, SystemExit) as alone:
                if type(alone) is type(error):
                    return batch.names[index]
        return f"{whole}, though for none of them alone"

    def _checked(self, returned: list[Any] | str, batch: Answers) -> list[float | None]:
        wrong = f"the reward function {self._label} returned"
        expected = f"expected a list of {_numbers(len(batch))}, or None, for the answers"
        if isinstance(returned, str):
            raise TrainError(f"{_names(batch)}: {wrong} {returned}; {expected}{self._where}")
        if len(returned) != len(batch):
            raise TrainError(
                f"{_names(batch)}: {wrong} a list of {_numbers(len(returned))}; "
                f"{expected}{self._where}"
            )
        rewards: list[float | None] = []
        for name, value in zip(batch.names, returned, strict=True):
            try:
                reward = None if value is None else _number(value)
            except (TypeError, ValueError, RuntimeError):
                kind = type(value).__name__
                raise TrainError(
                    f"{name}: {wrong} {value!r:.80} (a {kind}) for it; {expected}{self._where}"
                ) from None
            if reward is not None:
                finite(reward, name, self._label, where=self._where)
            rewards.append(reward)
        return rewards


def finite(value: float, name: str, label: str, *, where: str = "") -> float:
    """The value; raises TrainError with the row's name unless it is finite."""
    if not math.isfinite(value):
        raise TrainError(
            f"{name}: the reward of {label} is {value}; expected a finite number, or None where "
            f"the reward does not apply{where}"
        )
    return value


def _available(batch: Answers) -> dict[str, Any]:
    """All arguments that a function may ask for, by name."""
    arguments: dict[str, Any] = {
        "prompts": list(batch.prompts),
        "completions": list(batch.answers),
        **{name: list(values) for name, values in batch.columns.items()},
        **batch.extras,
    }
    if batch.completion_ids is not None:
        arguments["completion_ids"] = [list(ids) for ids in batch.completion_ids]
    return arguments


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """The parameters of a function; None if it has no signature, as some built-in ones."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None


def _listed(result: Any) -> list[Any] | str:
    """The elements of what a function returned; text about it if it has none in order.

    Tensors of any device and arrays become numbers at once; a column of one becomes flat.
    """
    if hasattr(result, "tolist"):
        with suppress(TypeError):  # of a Series of objects, and others' classes
            numbers = result.tolist()
            if not isinstance(numbers, list):
                return f"{numbers!r:.80}"
            columns = [len(each) == 1 for each in numbers if isinstance(each, list)]
            if numbers and len(columns) == len(numbers) and all(columns):
                return [each[0] for each in numbers]
            return numbers
    unordered = isinstance(result, str | bytes | Mapping | set | frozenset)
    if unordered or not isinstance(result, Iterable):
        return f"{result!r:.80} (a {type(result).__name__})"
    return list(result)


def _number(value: Any) -> float:
    """The value of a number, or of a tensor or array of one element. Raises: TypeError."""
    if isinstance(value, str | bytes):
        raise TypeError
    item = getattr(value, "item", None)
    return float(value if item is None else item())


def _names(batch: Answers) -> str:
    first, last = batch.names[0], batch.names[-1]
    return first if len(batch) == 1 else f"{first} to {last}"


def _numbers(count: int) -> str:
    return "one number" if count == 1 else f"{count} numbers"
