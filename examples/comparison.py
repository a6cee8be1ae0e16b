"""The policies of the fit demo, the rows of its table, and their measurement in one engine.

The policies are the sharp ones: adapters of one base that lie far apart, so that mixed logits,
mixed parameters and candidates differ. One engine answers all rows, request by request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.policies.demo import CHECKPOINTS, REWARDS, SHARP
from prefmix.weights.engines.engine import Engine
from prefmix.weights.engines.local import LocalEngine
from prefmix.weights.engines.progress import Progress
from prefmix.weights.engines.prompts import Prompt
from prefmix.weights.engines.quiet import held_back_stderr
from prefmix.weights.evaluation.evaluate import evaluate
from prefmix.weights.evaluation.evaluation import Evaluation
from prefmix.weights.evaluation.weighting import Weighting
from prefmix.weights.fit.rewards import Reward

REFERENCE = "reference"
NUM_CANDIDATES = 8
NUM_RESPONSES = 8
"""Responses per prompt."""
MAX_TOKENS = 128
_ENGINE = {
    # As in sharp.yaml, with room for more sequences at once.
    "enforce_eager": True,
    "max_model_len": 512,
    "max_num_seqs": 256,
    "kv_cache_memory_bytes": 2**28,
}


def demo_spec() -> MixtureSpec:
    """The mixture of the sharp policies."""
    base = str(CHECKPOINTS / REFERENCE)
    return MixtureSpec(
        policies=tuple(Policy(name=name, model=str(SHARP / name)) for name in REWARDS),
        reference=Policy(name=REFERENCE, model=base),
        base=base,
    )


def start_engine(spec: MixtureSpec) -> LocalEngine:
    """Starts vLLM on the demo's policies, in this process."""
    with held_back_stderr():
        return LocalEngine.start(spec, **_ENGINE)


def chat_prompts(texts: Sequence[str]) -> list[Prompt]:
    """User messages as prompts."""
    return [
        Prompt(id=str(index), messages=({"role": "user", "content": text},))
        for index, text in enumerate(texts)
    ]


def contenders(mixtures: Sequence[Weighting]) -> list[Weighting]:
    """The reference, each policy, uniform weights in all three ways, and some mixtures."""
    singles = [Weighting(name=name, weights={name: 1.0}) for name in (REFERENCE, *REWARDS)]
    uniform = dict.fromkeys(REWARDS, 1 / len(REWARDS))
    return [
        *singles,
        Weighting(name="uniform", weights=uniform),
        with_candidates("uniform", uniform),
        Weighting(name="uniform, parameters", weights=uniform, mixing="parameters"),
        *mixtures,
    ]


def with_candidates(name: str, weights: Mapping[str, float]) -> Weighting:
    """A row whose answers are picked from candidates."""
    return Weighting(name=f"{name}, candidates", weights=weights, candidates=NUM_CANDIDATES)


def measured(
    rows: Sequence[Weighting],
    prompts: Sequence[Prompt],
    *,
    engine: Callable[[], Engine],
    content_hashes: Mapping[str, str],
    cache: Path,
    progress: Progress | None = None,
) -> Evaluation:
    """Answers the prompts under every row and scores the answers with the demo's rewards."""
    return evaluate(
        prompts,
        rows,
        demo_rewards(),
        spec=demo_spec(),
        engine=engine,
        content_hashes=content_hashes,
        cache=cache,
        num_responses=NUM_RESPONSES,
        max_tokens=MAX_TOKENS,
        progress=progress,
    )


def demo_rewards() -> dict[str, Reward]:
    """The demo's rewards as an evaluation and a fit take them."""
    return {name: _judge(reward) for name, reward in REWARDS.items()}


def _judge(reward: Callable[[str], float]) -> Reward:
    return lambda _, answers, __: [reward(answer.strip()) for answer in answers]
