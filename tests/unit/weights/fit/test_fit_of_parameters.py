"""The fit of a served mean of parameters, whose law is known exactly and no mixture of logits."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefmix.mixing.spec import Policy
from prefmix.weights.fit.job import FitJob
from prefmix.weights.fit.output import write_profile
from prefmix.weights.fit.sampling import FitInputs
from prefmix.weights.fit.sequence_level.objective import Floats
from prefmix.weights.fit.settings import FitError, FitSettings
from prefmix.weights.fit.summary import summary
from prefmix.weights.store.store import WeightsStore
from support.fit.toy_engine import ToyEngine


def toy_adapters(*, seed: int, num_policies: int = 3) -> ToyEngine:
    toy = ToyEngine(seed=seed, num_policies=num_policies)
    base = Policy(name="reference", model="base")
    toy.spec = replace(toy.spec, reference=base, base="base")
    return toy


def job(toy: ToyEngine, cache: Path, **settings: Any) -> FitJob:
    defaults: dict[str, Any] = {"num_responses": 64, "num_rounds": 6, "mixing": "parameters"}
    inputs = FitInputs(
        spec=toy.spec,
        prompts=toy.prompts,
        settings=FitSettings(**{**defaults, **settings}),
        engine=lambda: toy,
        content_hashes={name: name for name in toy.spec.member_names},
        cache=cache,
        quiet=True,
    )
    return FitJob(inputs)


def least_largest_kl(toy: ToyEngine) -> tuple[Floats, float]:
    """The best weights of a mean of parameters on a grid of 1/20, and the largest KL there."""
    grid = [
        np.array([first, second, 20 - first - second]) / 20
        for first in range(21)
        for second in range(21 - first)
    ]
    largest = [float(toy.deployed_kl(point, "parameters").max()) for point in grid]
    best = int(np.argmin(largest))
    return grid[best], largest[best]


@pytest.mark.parametrize("seed", [1, 2])
def test_it_ends_near_the_least_largest_kl_of_the_mean_of_parameters(
    seed: int, tmp_path: Path
) -> None:
    toy = toy_adapters(seed=seed)
    result = job(toy, tmp_path, num_responses=256).run()
    exact_K = toy.deployed_kl(result.weights_K, "parameters")
    _, least = least_largest_kl(toy)
    uniform = toy.deployed_kl(np.full(3, 1 / 3), "parameters").max()
    assert uniform > least + 0.1
    assert exact_K.max() - least < min(0.04, 0.3 * (uniform - least))
    assert np.abs(exact_K - toy.deployed_kl(result.weights_K)).max() > 0.02, "one law for both ways"
    assert result.deployed is not None
    for name, kl in zip(result.names, exact_K, strict=True):
        low, high = result.deployed.kl_interval[name]
        assert low - 0.1 < kl < high + 0.1
    assert result.deployed.fall is not None
    assert result.deployed.fall_interval is not None
    assert result.fitted == "mixture of parameters (token level)"
    assert "finite differences over the weights" in " ".join(summary(result).split())


def test_each_round_scores_every_policy_and_two_weights_nearby_for_all_but_one(
    tmp_path: Path,
) -> None:
    toy = toy_adapters(seed=3)
    job(toy, tmp_path, num_responses=4, num_rounds=2).run()
    assert toy.calls["sample"] == 3
    assert toy.calls["score"] == 3 * (3 + 2 * 2)
    again = toy_adapters(seed=3)
    job(again, tmp_path, num_responses=4, num_rounds=2).run()
    assert again.calls == {"sample": 0, "score": 0}
    logits = toy_adapters(seed=3)
    job(logits, tmp_path, num_responses=4, num_rounds=2, mixing="logits").run()
    assert logits.calls["sample"] == 3, "draws of one way are none of the other"
    assert logits.calls["score"] == 0


def test_given_weights_are_measured_as_they_are_deployed(tmp_path: Path) -> None:
    """No gradient is needed, so no weights nearby are scored."""
    toy = toy_adapters(seed=4)
    result = job(toy, tmp_path, importances={"p0": 1.0, "p1": 1.0, "p2": 2.0}).run()
    exact_K = toy.deployed_kl(np.array([0.25, 0.25, 0.5]), "parameters")
    assert result.deployed is not None
    assert list(result.deployed.kl.values()) == pytest.approx(exact_K, abs=0.1)
    assert toy.calls == {"sample": 1, "score": 3}
    sequences = job(toy, tmp_path, sampler="sequence", num_responses=32).run()
    assert sequences.deployed is not None
    exact_K = toy.deployed_kl(sequences.weights_K, "parameters")
    assert list(sequences.deployed.kl.values()) == pytest.approx(exact_K, abs=0.15)


def test_full_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FitError, match="--mixing parameters: full checkpoints have no"):
        job(ToyEngine(), tmp_path)


def test_the_profile_says_how_it_is_mixed(tmp_path: Path) -> None:
    toy = toy_adapters(seed=5)
    fit = job(toy, tmp_path, num_responses=4, num_rounds=2)
    path = tmp_path / "weights.json"
    about = {"settings": asdict(fit.settings)}
    _, provenance = write_profile(
        path, fit.run(), toy.spec.member_names, profile="fitted", about=about, mixing="parameters"
    )
    stored = WeightsStore(path).read()
    assert stored.mixings == {"fitted": "parameters"}
    assert stored.provenance["fitted"]["fitted"] == provenance["fitted"]
    assert provenance["settings"]["mixing"] == "parameters"
