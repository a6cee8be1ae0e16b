"""Settings for changing weights while serving; set by the launcher, read in every API process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prefmix.server.config.run_folder import run_folder
from prefmix.weights.store.profiles import MAX_PROFILES

LIVE_ATTRIBUTE = "prefmix_live"
"""Name of the LiveSettings on vLLM's parsed arguments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveSettings:
    """Settings for changing weights while serving; they do not change after the start."""

    folder: Path
    """A folder of this server alone, for the sockets by which its processes talk."""
    store: Path | None = None
    """The weights store's file; None serves the configuration's profiles unchanged."""
    admin_port: int | None = None
    """A port of 127.0.0.1 for the admin routes alone; None puts them on the main port."""
    max_profiles: int = MAX_PROFILES
    """The most profiles that there may be."""
    dormant_profiles: bool = False
    """True keeps profiles that name absent policies, as dormant ones."""
    policies: Path | None = None
    """The folder of adapters that may be added; None adds none."""
    manifest: Path | None = None
    """The file that decides on the added policies; None lets requests add and remove them."""


@contextmanager
def live_settings(
    weights_store: str | None,
    admin_port: int | None,
    max_profiles: int = MAX_PROFILES,
    policies_dir: str | None = None,
    policies_manifest: str | None = None,
    dormant_profiles: bool = False,
) -> Iterator[LiveSettings]:
    """Makes the settings, with a temporary folder that exists as long as the block runs."""
    with run_folder() as folder:
        store = None if weights_store is None else Path(weights_store).absolute()
        yield LiveSettings(
            folder=folder,
            store=store,
            admin_port=admin_port,
            max_profiles=max_profiles,
            dormant_profiles=dormant_profiles,
            policies=None if policies_dir is None else Path(policies_dir).absolute(),
            manifest=None if policies_manifest is None else Path(policies_manifest).absolute(),
        )
