"""Settings that are refused or warned of at the start."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest

from prefmix.server.config.errors import CommandError
from prefmix.server.launch.security_checks import (
    REFUSED_VARIABLES,
    check_cross_origin,
    check_environment,
    check_open_address,
    is_public,
    safe_load_format,
    warnings,
)

LONG = "0123456789abcdef"


def arguments(**given: Any) -> Namespace:
    defaults = {"host": "127.0.0.1", "port": 8000, "uds": None, "api_key": None}
    return Namespace(**{**defaults, "allow_credentials": False, "allowed_origins": [], **given})


@pytest.mark.parametrize("name", REFUSED_VARIABLES)
def test_variables_that_open_vllms_other_doors_are_refused(name: str) -> None:
    for off in ("", "0", "false", "False", " 0 "):
        check_environment({name: off})
    for on in ("1", "true", "yes"):
        with pytest.raises(CommandError, match=f"{name} is set: .*; unset it") as caught:
            check_environment({name: on})
        assert caught.value.exit_code == 2


def test_credentials_for_every_web_page_are_refused() -> None:
    check_cross_origin(arguments())
    check_cross_origin(arguments(allowed_origins=["*"]))
    check_cross_origin(arguments(allowed_origins=["https://a"], allow_credentials=True))
    with pytest.raises(CommandError, match="--allow-credentials"):
        check_cross_origin(arguments(allowed_origins=["*"], allow_credentials=True))


def test_load_formats_that_unpickle_are_refused() -> None:
    assert safe_load_format("auto") == safe_load_format("hf") == "safetensors"
    assert safe_load_format("Dummy") == "dummy"
    for unsafe in ("pt", "npcache", "ipc_cache", "tensorizer", "modelexpress", "new_one"):
        with pytest.raises(CommandError, match="--allow-unsafe-weights"):
            safe_load_format(unsafe)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", None, "10.1.2.3", "example.org"])
def test_an_open_address_without_a_key_is_refused_or_warned_of(host: str | None) -> None:
    args = arguments(host=host)
    assert is_public(args)
    with pytest.raises(CommandError, match="there is no API key"):
        check_open_address(args, allowed=False)
    check_open_address(args, allowed=True)
    check_open_address(arguments(host=host, api_key=[LONG]), allowed=False)
    check_open_address(arguments(host=host, uds="/run/prefmix.sock"), allowed=False)
    (warning,) = warnings(args, [], {})
    assert "has no API key" in warning
    assert "PREFMIX_API_KEY_FILE" in warning
    assert list(warnings(arguments(host=host, api_key=[LONG]), [], {})) == []
    assert list(warnings(arguments(host=host, uds="/run/prefmix.sock"), [], {})) == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert not is_public(arguments(host=host))
    check_open_address(arguments(host=host), allowed=False)
    assert list(warnings(arguments(host=host), [], {})) == []


def test_short_secrets_on_an_open_address_are_warned_of() -> None:
    args = arguments(host="0.0.0.0", api_key=["short"])
    said = list(warnings(args, [], {"PREFMIX_ADMIN_TOKEN": "tiny"}))
    assert ["an API key" in line or "an admin token" in line for line in said] == [True, True]
    assert not any("short" in line or "tiny" in line for line in said)
    assert list(warnings(arguments(api_key=["short"]), [], {})) == []


def test_a_key_in_the_command_line_is_warned_of() -> None:
    for words in (["--api-key", LONG], [f"--api-key={LONG}"], ["--api_key", LONG]):
        (warning,) = warnings(arguments(api_key=[LONG]), words, {})
        assert "command line" in warning
        assert LONG not in warning
    assert list(warnings(arguments(api_key=[LONG]), ["--seed=1"], {})) == []
