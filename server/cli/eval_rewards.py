"""The rewards and judges of `prefmix eval`, made from functions and models."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefmix.server.config.errors import CommandError

if TYPE_CHECKING:
    from prefmix.policies.rewards.reward import Answers
    from prefmix.weights.engines.prompts import Prompt
    from prefmix.weights.evaluation.pairwise_judges import Judge
    from prefmix.weights.fit.rewards import Reward

MADE_UP_ANSWER = "This is a made-up answer, with which prefmix tries the reward."


def load_rewards(items: Sequence[str], *, allow_unsafe_weights: bool) -> dict[str, Reward]:
    """Loads the rewards of NAME=REWARD flags; returns objective -> reward.

    Raises: CommandError for a malformed flag, TrainError for a reward that cannot be loaded.
    """
    rewards: dict[str, Reward] = {}
    for item in items:
        name, _, spec = item.partition("=")
        if not name or not spec:
            raise CommandError(
                f"--reward is {item!r}; expected NAME=module:function, NAME=file.py:function or "
                "NAME=CHECKPOINT",
                exit_code=2,
            )
        if name in rewards:
            raise CommandError(
                f"--reward names {name!r} twice; give each objective one reward", exit_code=2
            )
        rewards[name] = load_judge(spec, allow_unsafe_weights=allow_unsafe_weights)
    return rewards


def load_judges(items: Sequence[str], *, taken: Collection[str]) -> dict[str, Judge]:
    """Loads the judges of NAME=JUDGE flags; returns objective -> judge.

    Args:
      taken: names of other objectives.
    Raises: CommandError for a malformed flag, TrainError for a function that cannot be loaded.
    """
    from prefmix.policies.rewards.loading import load_function
    from prefmix.weights.evaluation.pairwise_judges import ChatJudge

    judges: dict[str, Judge] = {}
    for item in items:
        name, _, spec = item.partition("=")
        url, _, model = spec.rpartition("#")
        is_url = spec.startswith(("http://", "https://"))
        if not name or not spec or (is_url and not (url and model)):
            raise CommandError(
                f"--judge is {item!r:.200}; expected NAME=module:function, NAME=file.py:function "
                "or NAME=URL#MODEL, such as helpful=http://127.0.0.1:8000/v1#judge",
                exit_code=2,
            )
        if name in judges or name in taken:
            raise CommandError(
                f"--judge names {name!r}, which another objective is called; name each once",
                exit_code=2,
            )
        if is_url:
            key = os.environ.get("PREFMIX_JUDGE_API_KEY")
            judges[name] = ChatJudge(url, model=model, criterion=name, api_key=key)
        else:
            judges[name] = _checked(load_function(spec), spec)
    return judges


def _checked(function: Callable[..., Any], spec: str) -> Judge:
    """The function, whose verdicts are checked."""
    from prefmix.policies.errors import TrainError

    def judge(
        prompts: Sequence[Prompt], answers: Sequence[str], others: Sequence[str]
    ) -> list[float | None]:
        asked = [prompt.text if prompt.messages is None else prompt.messages for prompt in prompts]
        try:
            found = list(function(asked, list(answers), list(others)))
        except Exception as error:  # someone else's code may raise anything
            raise TrainError(f"the judge {spec!r} raised {error!r:.200}") from error
        wrong = [each for each in found if not _is_verdict(each)]
        if len(found) != len(answers) or wrong:
            raise TrainError(
                f"the judge {spec!r} gave {f'{wrong[0]!r:.40}' if wrong else len(found)} for "
                f"{len(answers)} pairs; expected a number from 0 to 1, or None, for each"
            )
        return [None if each is None else float(each) for each in found]

    return judge


def _is_verdict(value: Any) -> bool:
    if value is None or isinstance(value, (str, bytes)):
        return value is None
    try:
        return 0 <= float(value) <= 1
    except (TypeError, ValueError):
        return False


def check_judges(judges: Mapping[str, Judge], prompts: Sequence[Prompt]) -> None:
    """Asks each judge once, about two made-up answers, before the engine starts.

    Raises: TrainError or EngineError of the judge.
    """
    for judge in judges.values():
        judge(prompts[:1], [MADE_UP_ANSWER], ["No."])


def check_rewards(rewards: Mapping[str, Reward], prompts: Sequence[Prompt]) -> None:
    """Calls each reward once, with a made-up answer to a prompt of each kind.

    A fault of a reward is found before the engine starts, not after the answers were drawn.
    Raises: TrainError naming the function, the prompt and the line of the user's code.
    """
    from prefmix.policies.errors import TrainError

    first = {prompt.messages is None: prompt for prompt in reversed(prompts)}
    for prompt in sorted(first.values(), key=prompts.index):
        for reward in rewards.values():
            try:
                reward([prompt], [MADE_UP_ANSWER], [[0]])
            except TrainError as error:
                raise TrainError(f"{error}; tried with a made-up answer before the start") from None


def load_judge(spec: str, *, allow_unsafe_weights: bool) -> Reward:
    """Loads one reward: a function in TRL's form, or a reward model's checkpoint."""
    from prefmix.policies.rewards.loading import load_reward

    reward = load_reward(spec, max_length=4096, allow_unsafe_weights=allow_unsafe_weights)

    def judge(
        prompts: Sequence[Prompt], answers: Sequence[str], tokens: Sequence[Sequence[int]]
    ) -> list[float | None]:
        scores: list[float | None] = [None] * len(answers)
        # A function expects texts or chats, not both in one call.
        for is_text in (True, False):
            places = [i for i, prompt in enumerate(prompts) if (prompt.messages is None) == is_text]
            if places:
                judged = reward.score(_judgeable(prompts, answers, tokens, places))
                for place, score in zip(places, judged, strict=True):
                    scores[place] = score
        return scores

    return judge


def _judgeable(
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    tokens: Sequence[Sequence[int]],
    places: Sequence[int],
) -> Answers:
    """Some of the answers in TRL's form: those to conversations are messages."""
    from prefmix.policies.data.implicit_prompts import Content
    from prefmix.policies.rewards.reward import Answers

    asked: list[Content] = []
    said: list[Content] = []
    for place in places:
        prompt, answer = prompts[place], answers[place]
        if prompt.messages is None:
            asked.append(prompt.text or "")
            said.append(answer)
        else:
            asked.append([dict(message) for message in prompt.messages])
            said.append([{"role": "assistant", "content": answer}])
    names = dict.fromkeys(name for place in places for name in prompts[place].columns)
    return Answers(
        prompts=asked,
        answers=said,
        names=[f"an answer to prompt {prompts[place].id}" for place in places],
        columns={name: [prompts[place].columns.get(name) for place in places] for name in names},
        completion_ids=[tokens[place] for place in places],
    )
