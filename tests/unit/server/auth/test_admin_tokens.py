"""Admin tokens: their sources, and the routes that they open."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefmix.server.auth.admin_tokens import admin_tokens
from prefmix.server.config.errors import CommandError


def from_file(folder: Path, text: str) -> dict[str, str]:
    path = folder / "tokens"
    path.write_text(text)
    return {"PREFMIX_ADMIN_TOKEN_FILE": str(path)}


def test_without_a_token_nobody_is_admin() -> None:
    for environ in ({}, {"PREFMIX_ADMIN_TOKEN": ""}, {"PREFMIX_ADMIN_TOKEN": " "}):
        tokens = admin_tokens(environ)
        assert not tokens
        assert tokens.holder("Bearer ") is None


def test_one_token_is_called_admin(tmp_path: Path) -> None:
    for environ in ({"PREFMIX_ADMIN_TOKEN": "s3cret"}, from_file(tmp_path, "s3cret\n")):
        tokens = admin_tokens(environ)
        assert tokens.holder("Bearer s3cret") == "admin"
        assert tokens.holder("bearer s3cret") == "admin"


def test_several_tokens_have_names(tmp_path: Path) -> None:
    tokens = admin_tokens(from_file(tmp_path, "# who may\n\nops one\nci two\n"))
    assert [tokens.holder(f"Bearer {token}") for token in ("one", "two", "ops")] == [
        "ops",
        "ci",
        None,
    ]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["no token"]),
        ("# nothing\n", ["no token"]),
        ("a b c\n", ["line 1", "3 words"]),
        ("ops one\nops two\n", ["line 2", "'ops'"]),
        ("o@s one\n", ["line 1", "name"]),
        ("tök\n", ["'admin'", "HTTP header"]),
        ("key\n", ["'admin'", "API key"]),
    ],
)
def test_bad_files_are_refused_without_showing_a_token(
    tmp_path: Path, text: str, parts: list[str]
) -> None:
    with pytest.raises(CommandError) as caught:
        admin_tokens(from_file(tmp_path, text), api_keys=["key"])
    message = str(caught.value)
    assert [part for part in parts if part not in message] == [], message
    for token in ("one", "two", "tök"):
        assert token not in message


def test_unreadable_file_and_two_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="No such file"):
        admin_tokens({"PREFMIX_ADMIN_TOKEN_FILE": str(tmp_path / "none")})
    with pytest.raises(CommandError, match="directory"):
        admin_tokens({"PREFMIX_ADMIN_TOKEN_FILE": str(tmp_path)})
    with pytest.raises(CommandError, match="both set"):
        admin_tokens({"PREFMIX_ADMIN_TOKEN": "a", **from_file(tmp_path, "b")})
