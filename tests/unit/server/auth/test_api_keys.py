"""API keys come from flags, variables or files, and no message shows one."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefmix.server.auth.admin_tokens import admin_tokens
from prefmix.server.auth.api_keys import api_keys, client_key
from prefmix.server.auth.tokens import exposed_file
from prefmix.server.config.errors import CommandError


def from_file(folder: Path, text: str) -> dict[str, str]:
    path = folder / "keys"
    path.write_text(text)
    return {"PREFMIX_API_KEY_FILE": str(path)}


def test_every_source_gives_the_key(tmp_path: Path) -> None:
    assert api_keys(None, {}) == []
    assert api_keys(None, {"PREFMIX_API_KEY": "", "VLLM_API_KEY": ""}) == []
    assert api_keys(["a", "b"], {}) == ["a", "b"]
    assert api_keys(None, {"VLLM_API_KEY": "v"}) == ["v"]
    assert api_keys(["a"], {"VLLM_API_KEY": "v"}) == ["a"]
    assert api_keys(None, {"PREFMIX_API_KEY": "p"}) == ["p"]
    assert api_keys(None, from_file(tmp_path, "f\n")) == ["f"]


def test_a_file_may_hold_the_old_key_and_the_new_one(tmp_path: Path) -> None:
    environ = from_file(tmp_path, "# until Friday\nold one\nnew two\n")
    assert api_keys(None, environ) == ["one", "two"]
    assert client_key(environ) == "one"


def test_what_the_launcher_resolved_is_resolved_again_in_each_api_process(tmp_path: Path) -> None:
    environ = from_file(tmp_path, "old one\nnew two\n")
    assert api_keys(api_keys(None, environ), environ) == ["one", "two"]


@pytest.mark.parametrize(
    ("given", "environ", "parts"),
    [
        (["SECRET"], {"PREFMIX_API_KEY": "SECRET2"}, ["--api-key", "PREFMIX_API_KEY"]),
        (None, {"PREFMIX_API_KEY": "SECRET", "VLLM_API_KEY": "SECRET2"}, ["VLLM_API_KEY"]),
        ([""], {}, ["empty"]),
        (["SECRET", ""], {}, ["empty"]),
        ([" SECRET"], {}, ["HTTP header"]),
        (["SECRET\n"], {}, ["HTTP header"]),
        (["SECRETÄ"], {}, ["HTTP header"]),
        (None, {"VLLM_API_KEY": "SECRET\x01X"}, ["VLLM_API_KEY", "HTTP header"]),
        (None, {"PREFMIX_API_KEY": "SECRET", "PREFMIX_API_KEY_FILE": "x"}, ["both set"]),
        (None, {"PREFMIX_API_KEY_FILE": "/nowhere/at/all"}, ["No such file"]),
    ],
)
def test_what_is_doubtful_is_refused_without_showing_it(
    given: list[str] | None, environ: dict[str, str], parts: list[str]
) -> None:
    with pytest.raises(CommandError) as caught:
        api_keys(given, environ)
    message = str(caught.value)
    assert [part for part in parts if part not in message] == [], message
    assert "SECRET" not in message


def test_an_admin_token_that_is_a_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="also an API key") as caught:
        admin_tokens({"PREFMIX_ADMIN_TOKEN": "SECRET"}, api_keys=["SECRET"])
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("mode", "word"),
    [(0o600, None), (0o640, None), (0o400, None), (0o644, "read"), (0o602, "write")],
)
def test_a_file_that_every_user_may_open_is_warned_of(
    tmp_path: Path, mode: int, word: str | None
) -> None:
    environ = from_file(tmp_path, "SECRET")
    (tmp_path / "keys").chmod(mode)
    warning = exposed_file(environ, "PREFMIX_API_KEY")
    assert (warning is None) == (word is None)
    if warning is not None and word is not None:
        assert word in warning
        assert "chmod 600" in warning
        assert "SECRET" not in warning
    assert exposed_file({}, "PREFMIX_API_KEY") is None
    assert exposed_file({"PREFMIX_API_KEY_FILE": "/nowhere"}, "PREFMIX_API_KEY") is None


def test_a_file_without_an_end_is_no_file_of_tokens() -> None:
    with pytest.raises(CommandError, match="more than 1048576 characters"):
        api_keys(None, {"PREFMIX_API_KEY_FILE": "/dev/zero"})
