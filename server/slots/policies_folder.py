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
        state = hashlib.sha256()
        for file in self.files(name):
            state.update(self._digest(name, file))
        return AddedPolicy.of(adapter=name, sha256=state.hexdigest())

    def unchanged(self, policy: AddedPolicy) -> Path:
        """The folder of an adapter whose files are those that were added.

        Raises: PoliciesFolderError.
        """
        assert policy.adapter is not None, "a prompt has no files"
        if self.adapter(policy.adapter).sha256 != policy.sha256:
            raise PoliciesFolderError(
                f"the adapter in {policy.adapter!r} has other files than when it was added: put "
                "those files back, or add the policy again as it is now"
            )
        return self.folder(policy.adapter)

    def files(self, name: str) -> tuple[Path, ...]:
        """The paths of an adapter's files. Raises: PoliciesFolderError."""
        folder = self.folder(name)
        return tuple(folder / file for file in _FILES)

    def confined(self, name: str) -> Path:
        """The path of an adapter's folder, of which no file is a link out of this one.

        Raises: PoliciesFolderError.
        """
        folder, top = self.folder(name), self.path.resolve()
        try:
            for file in folder.iterdir():
                if not file.resolve().is_relative_to(top):
                    raise _leads_out(name, file)
        except (OSError, RuntimeError) as error:
            raise _cannot_be_opened(name, "its folder", error) from None
        return folder

    def folder(self, name: str) -> Path:
        """The path of an adapter's folder. Raises: PoliciesFolderError if it lies outside."""
        wrong = f"adapter is {name[:80]!r}; expected the name of a folder in the server's "
        if not name or len(name) > MAX_FOLDER_CHARS or "\0" in name or Path(name).is_absolute():
            raise PoliciesFolderError(f"{wrong}--policies-dir, such as 'helpful/step-400'")
        top = self.path.resolve()
        if ".." in Path(name).parts:  # no look at what lies outside, if only on the way back
            raise PoliciesFolderError(f"{wrong}--policies-dir, and no way out of it")
        try:
            found = (top / name).resolve()
            is_there = found.is_dir()
        except (OSError, RuntimeError, ValueError) as error:
            raise _cannot_be_opened(name, "its folder", error) from None
        if found == top or not found.is_relative_to(top):
            raise PoliciesFolderError(f"{wrong}--policies-dir, and no way out of it")
        if not is_there:
            raise PoliciesFolderError(
                f"adapter {name[:80]!r}: the server's --policies-dir has no such folder"
            )
        return found

    def _digest(self, name: str, path: Path) -> bytes:
        try:
            real = path.resolve()
        except (OSError, RuntimeError) as error:
            raise _cannot_be_opened(name, path.name, error) from None
        if not real.is_relative_to(self.path.resolve()):
            raise _leads_out(name, path)
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
            raise _cannot_be_opened(name, path.name, error) from None
        return state.digest()


def _leads_out(name: str, path: Path) -> PoliciesFolderError:
    return PoliciesFolderError(
        f"adapter {name[:80]!r}: {path.name} is a link out of the server's --policies-dir"
    )


def _cannot_be_opened(name: str, what: str, error: Exception) -> PoliciesFolderError:
    """The refusal of a name or link that the file system cannot follow: too long, in a circle."""
    reason = getattr(error, "strerror", None) or "its name or its links lead nowhere"
    return PoliciesFolderError(f"adapter {name[:80]!r}: {what} cannot be read ({reason})")
