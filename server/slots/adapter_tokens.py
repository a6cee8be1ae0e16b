"""The check of a start for the tokens of adapters that come while the server runs."""

from __future__ import annotations

import logging
from pathlib import Path

from prefmix.mixing.checkpoints.compatibility import CompatibilityError, check_added_adapter
from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.server.slots.engine_slots import PolicyRefusedError

_LOGGER = logging.getLogger("prefmix.faults")


class AdapterTokens:
    """Refuses adapters that a start would have refused for their tokenizer, with its words."""

    def __init__(self, engine: MixtureSpec) -> None:
        self._engine = engine

    def check(self, name: str, folder: Path) -> None:
        """Reads files: run it in a thread. Raises: PolicyRefusedError."""
        adapter, base = Policy(name=name, model=str(folder)), self._engine.checkpoints[0]
        try:
            warning = check_added_adapter(adapter, base)
        except CompatibilityError as error:
            raise PolicyRefusedError(str(error)) from None
        if warning is not None:
            _LOGGER.warning("%s", warning)
