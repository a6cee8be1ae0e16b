"""One architecture in both layouts, against transformers and against plain vLLM."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from architectures import forks
from architectures.candidates import TOLERANCE_NATS, Candidate
from architectures.exceptions import ENGINE
from architectures.tiny_configs import VOCAB_SIZE
from support.engines import spec_of_folders
from support.exactness import Job, random_jobs

REFUSALS = ("CompatibilityError", "AdapterError", "UnsupportedEngineError", "MemberLoadError")
"""The errors by which a mixture refuses a model."""

LEAST_EFFECT_NATS = 0.05
"""Two members of a trial differ by more than this in the mean, or the trial shows nothing."""

MOST_KINDS_LEFT_OUT = 8

Served = list[tuple[list[int], list[float]]]
"""Per request: tokens, and their log-probabilities."""


def trial(candidate: Candidate, root: Path) -> dict[str, Any]:
    """Tries an architecture. Returns: its line of the results.

    Args:
      root: an empty folder; the log of each step stays there.
    """
    started = time.monotonic()
    line: dict[str, Any] = {
        "architecture": candidate.name,
        "model_type": candidate.model_type,
        "served_as": candidate.served_as,
        "versions": {name: version(name) for name in ("transformers", "vllm")},
    }
    line |= Trial(candidate, root).run()
    for folder in root.iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    return {**line, "seconds": round(time.monotonic() - started)}


class Trial:
    """The steps of a trial, each in a process of its own."""

    def __init__(self, candidate: Candidate, root: Path) -> None:
        self._candidate = candidate
        self._root = root
        self._policies = [root / "p0", root / "p1"]
        self._flags = ENGINE.get(candidate.model_type, {})

    def run(self) -> dict[str, Any]:
        """Returns: what was found, by the names of a line of the results."""
        from architectures import steps

        model = (self._candidate.model_type, dict(self._candidate.settings))
        built = self._call("build", steps.build, *model, self._policies)
        if built.error:
            return {"unbuilt": sentence(built)}
        effect = self._call("effect", steps.effect, self._policies)
        if effect.error:
            return {"unbuilt": sentence(effect)}
        plain = self._call("plain", steps.plain, self._policies[0], alone(), self._flags)
        if plain.error:
            return {"not_run_by_vllm": sentence(plain)}
        own = self._call("own", steps.errors, self._policies[:1], alone(), plain.value)
        found: dict[str, Any] = {"effect": effect.value, "plain": own.value}
        is_own = own.error or own.value > TOLERANCE_NATS
        if own.error:
            found["plain"] = None
        if not own.error and effect.value < LEAST_EFFECT_NATS:
            return {**found, "unbuilt": "its random checkpoints hardly differ"}
        against = "vllm" if is_own else "transformers"
        found["full"] = self._compared(
            "full", steps.mixed, self._policies, spec_of_folders(self._policies), against
        )
        found["trunk"] = self._trunk(against)
        return found

    def _compared(
        self, name: str, mixed: Any, folders: Sequence[Path], spec: Any, against: str
    ) -> dict[str, Any]:
        """Serves a mixture and measures it against its members."""
        from architectures import steps

        served = self._call(name, mixed, spec, together(), self._flags)
        if served.error:
            verdict = "refused" if served.error in REFUSALS else "fails"
            return {"verdict": verdict, "why": sentence(served), "text": served.text}
        figures: dict[str, Any] = {}
        to_transformers = self._call(
            f"{name}_oracle", steps.errors, folders, together(), served.value
        )
        if not to_transformers.error:
            figures["nats"] = to_transformers.value
            if to_transformers.value <= TOLERANCE_NATS:
                return {"verdict": "exact", **figures}
        if against == "vllm":
            for index, folder in enumerate(folders):
                path = self._root / f"{name}_{index}.npy"
                logits = self._call(
                    f"{name}_plain",
                    steps.all_logprobs,
                    folder,
                    together(),
                    served.value,
                    path,
                    self._flags,
                )
                if logits.error:
                    return {"verdict": "fails", "why": f"plain vLLM: {sentence(logits)}"}
            figures["nats_from_vllm"] = from_files(
                [self._root / f"{name}_{index}.npy" for index in range(len(folders))],
                together(),
                served.value,
            )
        decisive = figures["nats_from_vllm"] if against == "vllm" else figures.get("nats")
        if decisive is None:
            return {"verdict": "fails", "why": sentence(to_transformers)}
        verdict = "exact" if decisive <= TOLERANCE_NATS else "wrong"
        return {"verdict": verdict, **figures}

    def _trunk(self, against: str) -> dict[str, Any]:
        """A shared trunk with adapters of every linear layer that it takes."""
        from architectures import steps

        left_out: dict[str, str] = {}
        while True:
            folders = [self._root / "a0", self._root / "a1"]
            kinds = self._call(
                "adapters", steps.adapters, self._policies[0], folders, list(left_out)
            )
            if kinds.error:
                return {"verdict": "fails", "why": sentence(kinds)}
            if not kinds.value:
                return {"verdict": "refused", "why": next(iter(left_out.values()))}
            merged = [folder / "merged" for folder in folders]
            spec = steps.trunk_spec(self._policies[0], folders)
            found = self._compared("trunk", steps.mixed, merged, spec, against)
            refused = refused_kinds(found.get("text", ""), kinds.value)
            if not refused or len(left_out) >= MOST_KINDS_LEFT_OUT:
                found.pop("text", None)
                return {**found, "layers": kinds.value, "left_out": left_out}
            left_out |= dict.fromkeys(refused, found["why"])

    def _call(self, name: str, work: Any, *args: Any) -> forks.Outcome:
        return forks.call(work, *args, log=self._root / f"{name}.log")


def version(package: str) -> str:
    """The number of a package's release."""
    import transformers
    import vllm

    return {"transformers": transformers, "vllm": vllm}[package].__version__.partition("+")[0]


def alone() -> list[Job]:
    """Requests to one policy."""
    return random_jobs(6, num_members=1, vocab_size=VOCAB_SIZE, seed=1, longest=100)


def together() -> list[Job]:
    """Requests to a mixture of two."""
    return random_jobs(10, num_members=2, vocab_size=VOCAB_SIZE, seed=2, longest=100)


def refused_kinds(text: str, kinds: Sequence[str]) -> list[str]:
    """The kinds of layers that a refusal names."""
    from architectures.checkpoints import kind_of

    named = {kind_of(name) for name in re.findall(r"[\w.]+\.[\w.]+", text)}
    return [kind for kind in kinds if kind in named]


def sentence(outcome: forks.Outcome) -> str:
    """The first lines of an error as one short sentence."""
    text = " ".join(outcome.text.split()) or outcome.error
    text = re.sub(r"/\S+/", "", text)
    known = outcome.error in REFUSALS
    return f"{text:.400}" if known else f"{outcome.error}: {text:.240}"


def from_files(paths: Sequence[Path], jobs: Sequence[Job], served: Served) -> float:
    """The largest error against members whose log-probabilities lie in files."""
    members = [np.load(path) for path in paths]
    worst, row = 0.0, 0
    for job, (tokens, logprobs) in zip(jobs, served, strict=True):
        for token, logprob in zip(tokens, logprobs, strict=True):
            mixed = sum(
                weight * member[row].astype(np.float64)
                for weight, member in zip(job.weights, members, strict=True)
                if weight
            )
            truth = mixed[token] - np.logaddexp.reduce(mixed)
            worst = max(worst, abs(logprob - truth))
            row += 1
    return worst
