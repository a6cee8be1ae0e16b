"""The result of a fit as a file of the weights store, with its provenance."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.weights.fit.result import FitResult
from prefmix.weights.store.durable_file import replace_file
from prefmix.weights.store.format import dump
from prefmix.weights.store.profiles import build_profile_set


def write_store(
    path: Path,
    result: FitResult,
    member_names: Sequence[str],
    *,
    profile: str,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Writes a store file with one profile, which is the default.

    Args:
      path: the file; replaced if it exists.
      result: the fit.
      member_names: members of the mixture, in weight order; members that were not fitted get 0.
      profile: name of the profile.
      about: hashes of the fit's inputs, and its settings.
    Returns: the provenance that was written.
    """
    provenance = {
        **about,
        "fitted": result.fitted,
        "verdict": result.verdict,
        "certificate": None if result.certificate is None else result.certificate.to_dict(),
        "deployed": None if result.deployed is None else asdict(result.deployed),
        "versions": {
            name: importlib.metadata.version(name) for name in ("prefmix", "numpy", "torch")
        },
    }
    spec = MixtureSpec(policies=tuple(Policy(name=name, model=name) for name in member_names))
    profiles = build_profile_set(
        {profile: result.weights}, spec, default=profile, provenance={profile: provenance}
    )
    replace_file(path, dump(profiles).encode())
    return provenance
