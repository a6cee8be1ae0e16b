"""The folder of adapters that a running server may take up, and the only one that it looks into."""

from __future__ import annotations

import hashlib
from pathlib import Path

from prefmix.mixing.checkpoints.file_names import ADAPTER_CONFIG, ADAPTER_PARAMETERS
from prefmix.weights.store.added import MAX_FOLDER_CHARS, AddedPolicy

_FILES = (ADAPTER_CONFIG, ADAPTER_PARAMETERS)
_CHUNK_BYTES = 2**20


class PoliciesFolderError(ValueError):
    """An adapter that is not in the folder of policies, or cannot be read there."""


class PoliciesFolder:
    """A folder whose subfolders are adapters."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def adapter(self, name: str) -> AddedPolicy:
        """An adapter and the hash of its files. Reads them: run it in a thread.

        Args: name: of its folder, relative to this one.
        Raises: PoliciesFolderError.
        """
        folder = self.folder(name)
        state = hashlib.sha256()
        for file in _FILES:
            state.update(self._digest(name, folder / file))
        return AddedPolicy(adapter=name, sha256=state.hexdigest())

    def unchanged(self, policy: AddedPolicy) -> Path:
        """The folder of an adapter whose files are those that were added.

        Raises: PoliciesFolderError.
        """
        if self.adapter(policy.adapter).sha256 != policy.sha256:
            raise PoliciesFolderError(
                f"the adapter in {policy.adapter!r} has other files than when it was added: put "
                "those files back, or add the policy again as it is now"
            )
        return self.folder(policy.adapter)

    def folder(self, name: str) -> Path:
        """The path of an adapter's folder. Raises: PoliciesFolderError if it lies outside."""
        wrong = f"adapter is {name[:80]!r}; expected the name of a folder in the server's "
        if not name or len(name) > MAX_FOLDER_CHARS or "\0" in name or Path(name).is_absolute():
            raise PoliciesFolderError(f"{wrong}--policies-dir, such as 'helpful/step-400'")
        top = self.path.resolve()
        found = (top / name).resolve()
        if found == top or not found.is_relative_to(top):
            raise PoliciesFolderError(f"{wrong}--policies-dir, and no way out of it")
        if not found.is_dir():
            raise PoliciesFolderError(
                f"adapter {name[:80]!r}: the server's --policies-dir has no such folder"
            )
        return found

    def _digest(self, name: str, path: Path) -> bytes:
        real = path.resolve()
        if not real.is_relative_to(self.path.resolve()):
            raise PoliciesFolderError(
                f"adapter {name[:80]!r}: {path.name} is a link out of the server's --policies-dir"
            )
        state = hashlib.sha256()
        try:
            if not real.is_file():
                raise PoliciesFolderError(
                    f"adapter {name[:80]!r} has no {path.name}; save it with peft's "
                    "save_pretrained(..., safe_serialization=True)"
                )
            with real.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    state.update(chunk)
        except OSError as error:
            raise PoliciesFolderError(
                f"adapter {name[:80]!r}: {path.name} cannot be read ({error.strerror})"
            ) from None
        return state.digest()
