"""The package exports its names, and explains a misspelt one."""

from __future__ import annotations

import importlib.metadata

import pytest

import prefmix


def test_exports() -> None:
    from prefmix.mixture import Mixture

    assert prefmix.__all__ == ["Mixture", "__version__"]
    assert prefmix.Mixture is Mixture
    assert prefmix.__version__ == importlib.metadata.version("prefmix")
    assert {"Mixture", "__version__"} <= set(dir(prefmix))


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="'prefmix' has no attribute 'Mixtur'"):
        _ = prefmix.Mixtur
