"""The result of a fit as a profile of a weights store, with its provenance."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from prefmix.mixing.ways_to_mix import Mixing
from prefmix.weights.store.change import Change
from prefmix.weights.store.edits import merged
from prefmix.weights.store.errors import StoreFormatError, StoreMissingError
from prefmix.weights.store.for_mixture import for_mixture
from prefmix.weights.store.format import spec_of_members
from prefmix.weights.store.profiles import ProfileSet, build_profile_set
from prefmix.weights.store.store import WeightsStore


class Fitted(Protocol):
    """The result of a fit of any kind."""

    @property
    def weights(self) -> dict[str, float]:
        """The fitted weights by policy."""

    def provenance(self) -> dict[str, Any]:
        """The figures that say how good the weights are."""


def check_output(path: Path, member_names: Sequence[str] | None) -> None:
    """Checks, before anything is fitted, that the profile can be written to a file.

    Args:
      path: the store file; a missing one is made.
      member_names: the members of the mixture, in any order; None if they are not known yet.
    Raises: StoreError if the file is no store, is a store for other policies, or cannot be read.
    """
    store = WeightsStore(path)
    try:
        present = store.read()
        if member_names is not None:
            spec = spec_of_members(member_names, present.weight_space)
            for_mixture(present, spec, source=str(path))
    except StoreMissingError:
        if not path.absolute().parent.is_dir():
            raise StoreMissingError(
                f"--output: the folder {path.parent} does not exist; make it first"
            ) from None
    except StoreFormatError as error:
        raise StoreFormatError(
            f"--output: {error}; nothing was changed: name another file, or add --force to replace "
            "this one"
        ) from None


def write_profile(
    path: Path,
    result: Fitted,
    member_names: Sequence[str],
    *,
    profile: str,
    about: dict[str, Any],
    mixing: Mixing | None = None,
    make_default: bool = False,
    force: bool = False,
) -> tuple[Change, dict[str, Any]]:
    """Writes the fitted weights to a store as one profile.

    In a store that exists the profile is added or replaced, as a new version; the other profiles
    stay. A missing store is made with the profile as its default.

    Args:
      path: the store file.
      result: the fit.
      member_names: members of the mixture, in weight order; members that were not fitted get 0.
      profile: name of the profile.
      about: hashes of the fit's inputs, and its settings.
      mixing: the profile's own way to mix; None leaves it to the server.
      make_default: make the profile the default of a store that exists, too.
      force: replace the file, whatever it holds, by a new store.
    Returns: (the change, the provenance that was written).
    Raises: StoreError as `check_output`, or if the file cannot be written; it is then unchanged.
    """
    provenance = {
        **about,
        **result.provenance(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("prefmix", "numpy", "torch")
        },
    }
    fitted = build_profile_set(
        {profile: result.weights},
        spec_of_members(member_names, "simplex"),
        default=profile,
        mixings={profile: mixing},
        provenance={profile: provenance},
    )
    store = WeightsStore(path)
    if force:
        store.start_over(fitted)
        return Change(None, fitted), provenance

    def edit(present: ProfileSet) -> ProfileSet:
        return merged(present, fitted, source="the fitted profile", with_its_default=make_default)

    if not path.exists() and store.create(fitted).sha256 == fitted.sha256:
        return Change(None, store.read()), provenance
    return store.change(edit), provenance
