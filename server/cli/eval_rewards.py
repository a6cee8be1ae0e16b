"""The rewards of `prefmix eval`, made from the reward functions and models of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefmix.server.config.errors import CommandError

if TYPE_CHECKING:
    from prefmix.weights.engines.prompts import Prompt
    from prefmix.weights.evaluation.evaluate import Reward


def load_rewards(items: Sequence[str], *, allow_unsafe_weights: bool) -> dict[str, Reward]:
    """Loads the rewards of NAME=REWARD flags; returns objective -> reward.

    Raises: CommandError for a malformed flag, TrainError for a reward that cannot be loaded.
    """
    rewards: dict[str, Reward] = {}
    for item in items:
        name, _, spec = item.partition("=")
        if not name or not spec:
            raise CommandError(
                f"--reward is {item!r}; expected NAME=module:function or NAME=CHECKPOINT",
                exit_code=2,
            )
        if name in rewards:
            raise CommandError(
                f"--reward names {name!r} twice; give each objective one reward", exit_code=2
            )
        rewards[name] = load_judge(spec, allow_unsafe_weights=allow_unsafe_weights)
    return rewards


def load_judge(spec: str, *, allow_unsafe_weights: bool) -> Reward:
    """Loads one reward: module:function, or a reward model's checkpoint."""
    from prefmix.policies.train.pairs import Content
    from prefmix.policies.train.rewards import load_reward

    reward = load_reward(spec, max_length=4096, allow_unsafe_weights=allow_unsafe_weights)

    def judge(prompts: Sequence[Prompt], answers: Sequence[str]) -> Sequence[float]:
        asked: list[Content] = []
        said: list[Content] = []
        for prompt, answer in zip(prompts, answers, strict=True):
            if prompt.messages is None:
                asked.append(prompt.text or "")
                said.append(answer)
            else:
                asked.append([dict(message) for message in prompt.messages])
                said.append([{"role": "assistant", "content": answer}])
        names = [f"an answer to prompt {prompt.id}" for prompt in prompts]
        return reward.score(asked, said, names)

    return judge
