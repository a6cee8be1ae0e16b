"""The engine of a fit in this process: exact samples and scores in both layouts."""

from __future__ import annotations

from pathlib import Path

from prefmix.mixing.spec import MixtureSpec
from prefmix.weights.engines.local import LocalEngine
from support.engines import AdaptedBase, EngineFactory
from support.fit.engine_law import check_engine, check_mixed_parameters, mixture


def test_local_engine_of_a_trunk_samples_and_scores_exactly(
    engine: EngineFactory, adapted: AdaptedBase
) -> None:
    spec = MixtureSpec(
        policies=adapted.spec().policies[:2], base=str(adapted.base), reference=adapted.reference()
    )
    local, members = LocalEngine(engine(spec)), [*adapted.merged[:2], adapted.base]
    check_engine(local, members)
    check_mixed_parameters(local, members)


def test_local_engine_samples_and_scores_exactly(
    engine: EngineFactory, policies: list[Path]
) -> None:
    check_engine(LocalEngine(engine(mixture(policies))), policies)
