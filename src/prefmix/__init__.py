"""prefmix: mixes language-model policies at inference time.

`from prefmix import Mixture` runs a mixture in this process; nothing heavy is imported before one
is made. The package's rooms are `prefmix.mixing`, `prefmix.weights`, `prefmix.server`,
`prefmix.policies` and `prefmix.bench`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefmix.mixture import Mixture

    __version__: str

__all__ = ["Mixture", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Mixture":
        from prefmix.mixture import Mixture

        return Mixture
    if name == "__version__":
        from importlib.metadata import version

        return version("prefmix")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
