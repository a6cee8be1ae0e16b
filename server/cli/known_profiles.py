"""The profiles that a command can name: of a store file, or of the configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefmix.mixing.spec import MixtureSpec
    from prefmix.server.config.serve_config import ServeConfig

Profiles = Mapping[str, Sequence[float]]
"""Profile name -> weights of the members."""


def known_profiles(config: ServeConfig, spec: MixtureSpec, store: Path | None) -> Profiles:
    """The profiles of a store file, or else of the configuration.

    Args:
      store: the file; None is that of the configuration, if it exists.
    Raises: ConfigError, StoreFormatError.
    """
    path = store or (config.weights_store and Path(config.weights_store))
    if path and (store or path.exists()):
        return stored_profiles(path, spec)
    return config.profile_set(spec).profiles if config.profiles else {}


def stored_profiles(path: Path, spec: MixtureSpec) -> Profiles:
    """The profiles of a store file. Raises: StoreFormatError."""
    from prefmix.weights.store.durable_file import read_regular_file
    from prefmix.weights.store.errors import StoreFormatError
    from prefmix.weights.store.for_mixture import for_mixture
    from prefmix.weights.store.format import MAX_BYTES, parse

    try:
        text = read_regular_file(path, most=MAX_BYTES + 1)
    except OSError as error:
        raise StoreFormatError(f"{path}: cannot be read ({error})") from None
    return for_mixture(parse(text, source=str(path)), spec, source=str(path)).profiles
