"""Draws the rows of the story's table: single policies, mixtures and parameter averages.

One engine runs them all: a parameter average is one more policy of its mixture, and a single policy
is a mixture with one-hot weights. Draws are kept on disk under the hash of what decides them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from examples.gains import REFERENCE, Floats, Row
from mixing.spec import MixtureSpec, Policy
from policies.demo import CHECKPOINTS, REWARDS
from weights.draws import DrawSettings, draw
from weights.engine import Engine, LocalEngine
from weights.fingerprint import fingerprint
from weights.progress import Progress
from weights.prompts import Prompt, hash_of_prompts
from weights.quiet import held_back_stderr

NUM_RESPONSES = 24
"""Responses a prompt."""
MAX_TOKENS = 160
_SEED = 4242
_ENGINE = {
    # As in serve.yaml, with room for more sequences at once.
    "enforce_eager": True,
    "max_model_len": 512,
    "max_num_seqs": 256,
    "kv_cache_memory_bytes": 2**28,
}


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A row before it is measured."""

    name: str
    weights: dict[str, float]
    """Of the members of the comparison's mixture; who is not named has 0."""
    shown: tuple[float, ...] | None = None
    """What the table prints as weights of the policies."""


def demo_spec(extra: dict[str, Path] | None = None) -> MixtureSpec:
    """The demo mixture, with further policies behind its own three."""
    folders = {**{name: CHECKPOINTS / name for name in REWARDS}, **(extra or {})}
    return MixtureSpec(
        policies=tuple(Policy(name=name, model=str(folder)) for name, folder in folders.items()),
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


def measure_rows(
    contenders: Sequence[Contender],
    *,
    spec: MixtureSpec,
    prompts: Sequence[Prompt],
    engine: Callable[[], Engine],
    cache: Path,
    progress: Progress,
) -> list[Row]:
    """Draws responses at temperature 1 for every contender and scores them.

    Args:
      contenders: the rows.
      spec: the mixture that holds all members they name.
      prompts: P prompts, asked in every row.
      engine: gives an engine of `spec`; only called when a draw is missing.
      cache: folder of the draws.
      progress: where to show how far it is.
    """
    fingerprints = {member.name: fingerprint(member) for member in spec.members}
    tokenizer = Tokenizer.from_file(str(CHECKPOINTS / REFERENCE / "tokenizer.json"))
    total = len(contenders) * len(prompts) * NUM_RESPONSES
    sampling = progress.stage("sample", total, "responses")
    scoring = progress.stage("score", 0, "responses")
    rows = []
    for contender in contenders:
        weights_M = tuple(contender.weights.get(name, 0.0) for name in spec.member_names)
        settings = DrawSettings(
            weights_M=weights_M, num_responses=NUM_RESPONSES, max_tokens=MAX_TOKENS, seed=_SEED
        )
        taking_part = {name: fingerprints[name] for name in contender.weights}
        folder = cache / _name_of(settings, contender, taking_part, prompts)
        draw(
            folder,
            prompts=prompts,
            settings=settings,
            spec=spec,
            engine=engine,
            members=(),
            sampling=sampling,
            scoring=scoring,
            title=contender.name,
        )
        rows.append(_scored(contender, _texts(folder, tokenizer), num_prompts=len(prompts)))
    return rows


def _name_of(
    settings: DrawSettings,
    contender: Contender,
    fingerprints: dict[str, str],
    prompts: Sequence[Prompt],
) -> str:
    plain = {**asdict(settings), "weights_M": contender.weights}
    decides = ["comparison", plain, fingerprints, hash_of_prompts(prompts)]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:20]


def _texts(folder: Path, tokenizer: Tokenizer) -> list[str]:
    """The responses of a draw, prompt by prompt."""
    tokens = [
        row
        for path in sorted(folder.glob("sample-*.parquet"))
        for row in pq.read_table(path, columns=["tokens"])["tokens"].to_pylist()
    ]
    return [text.strip() for text in tokenizer.decode_batch(tokens, skip_special_tokens=True)]


def _scored(contender: Contender, texts: Sequence[str], *, num_prompts: int) -> Row:
    rewards: Floats = np.array([[reward(text) for reward in REWARDS.values()] for text in texts])
    return Row(
        name=contender.name,
        weights=contender.shown,
        rewards_PJO=rewards.reshape(num_prompts, -1, len(REWARDS)),
        num_words=float(np.mean([len(text.split()) for text in texts])),
    )
