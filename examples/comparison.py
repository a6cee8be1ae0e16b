"""The rows of the fit demo's table, and their measurement in one engine.

A parameter average is one more policy of the mixture, and a single policy is a mixture with one-hot
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.policies.demo import CHECKPOINTS, REWARDS
from prefmix.weights.engines.content_hash import content_hashes
from prefmix.weights.engines.local import Engine, LocalEngine
from prefmix.weights.engines.progress import Progress
from prefmix.weights.engines.prompts import Prompt
from prefmix.weights.engines.quiet import held_back_stderr
from prefmix.weights.evaluation.evaluate import evaluate
from prefmix.weights.evaluation.evaluation import Evaluation
from prefmix.weights.evaluation.parameter_average import with_averages
from prefmix.weights.evaluation.weighting import Weighting
from prefmix.weights.fit.rewards import Reward

REFERENCE = "reference"
NUM_RESPONSES = 24
"""Responses per prompt."""
MAX_TOKENS = 160
_ENGINE = {
    # As in serve.yaml, with room for more sequences at once.
    "enforce_eager": True,
    "max_model_len": 512,
    "max_num_seqs": 256,
    "kv_cache_memory_bytes": 2**28,
}


def demo_spec() -> MixtureSpec:
    """The demo mixture."""
    return MixtureSpec(
        policies=tuple(Policy(name=name, model=str(CHECKPOINTS / name)) for name in REWARDS),
        reference=Policy(name=REFERENCE, model=str(CHECKPOINTS / REFERENCE)),
    )


def start_engine(spec: MixtureSpec) -> LocalEngine:
    """Starts vLLM on some of the demo's checkpoints, in this process."""
    with held_back_stderr():
        return LocalEngine.start(spec, **_ENGINE)


def chat_prompts(texts: Sequence[str]) -> list[Prompt]:
    """User messages as prompts."""
    return [
        Prompt(id=str(index), messages=({"role": "user", "content": text},))
        for index, text in enumerate(texts)
    ]


def contenders(mixtures: Mapping[str, Mapping[str, float]]) -> list[Weighting]:
    """The reference, each policy, some mixtures, and the parameter averages at their weights."""
    singles = [Weighting(name=name, weights={name: 1.0}) for name in (REFERENCE, *REWARDS)]
    mixed = [Weighting(name=name, weights=weights) for name, weights in mixtures.items()]
    soups = [
        Weighting(name=f"soup {name}", weights={f"soup-{name}": 1.0}, shares=weights)
        for name, weights in ((name.removeprefix("fitted "), w) for name, w in mixtures.items())
    ]
    return [*singles, *mixed, *soups]


def measured(
    rows: Sequence[Weighting],
    prompts: Sequence[Prompt],
    *,
    engine: Callable[[MixtureSpec], Engine],
    cache: Path,
    scratch: Path,
    progress: Progress | None = None,
) -> Evaluation:
    """Answers the prompts under every row and scores the answers with the demo's rewards.

    Args:
      engine: starts an engine; called once, if a draw is not in `cache`.
      scratch: folder for the parameter averages.
    """
    averages = {row.taking_part[0]: row.shares for row in rows if row.shares is not None}
    spec = with_averages(demo_spec(), averages, scratch)
    started: list[Engine] = []

    def once() -> Engine:
        started[:] = started or [engine(spec)]
        return started[0]

    return evaluate(
        prompts,
        rows,
        {name: _judge(reward) for name, reward in REWARDS.items()},
        spec=spec,
        engine=once,
        content_hashes=content_hashes(spec),
        cache=cache,
        num_responses=NUM_RESPONSES,
        max_tokens=MAX_TOKENS,
        progress=progress,
    )


def _judge(reward: Callable[[str], float]) -> Reward:
    return lambda _, answers, __: [reward(answer.strip()) for answer in answers]
