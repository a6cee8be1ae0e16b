"""Who may change weights: bearer tokens of their own, never the API key.

PREFMIX_ADMIN_TOKEN holds one token; whoever sends it is called `admin` in the audit log.
PREFMIX_ADMIN_TOKEN_FILE names a file with one token, or with a line `NAME TOKEN` for each.
With neither there are no admin routes.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mixing.spec import SpecError, check_name
from server.exits import CommandError

TOKEN_VARIABLE = "PREFMIX_ADMIN_TOKEN"
FILE_VARIABLE = "PREFMIX_ADMIN_TOKEN_FILE"
DEFAULT_NAME = "admin"


@dataclass(frozen=True, slots=True)
class AdminToken:
    """One token: its name, for the log, and a digest to compare with."""

    name: str
    digest: bytes

    @classmethod
    def of(cls, name: str, token: str) -> AdminToken:
        """The token called `name`."""
        return cls(name, _digest(token))


class AdminTokens:
    """The tokens that open the admin routes."""

    def __init__(self, tokens: Iterable[AdminToken]) -> None:
        self._tokens = tuple(tokens)

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def holder(self, authorization: str) -> str | None:
        """The name of the token in an Authorization header, None if it holds no known one."""
        scheme, _, token = authorization.partition(" ")
        digest = _digest(token.strip())
        # Every token is compared, so that the time taken says nothing about which nearly matched.
        names = [
            known.name for known in self._tokens if secrets.compare_digest(digest, known.digest)
        ]
        return names[0] if names and scheme.lower() == "bearer" else None


def admin_tokens(
    environ: Mapping[str, str] = os.environ, *, api_keys: Iterable[str] = ()
) -> AdminTokens:
    """Reads the tokens from the environment.

    Args:
      environ: the environment.
      api_keys: the inference keys; none of them may be an admin token.
    Raises: CommandError, which never shows a token.
    """
    token = environ.get(TOKEN_VARIABLE, "").strip()
    path = environ.get(FILE_VARIABLE, "")
    if token and path:
        raise CommandError(f"{TOKEN_VARIABLE} and {FILE_VARIABLE} are both set; keep one of them")
    pairs = [(DEFAULT_NAME, token)] if token else []
    source = TOKEN_VARIABLE
    if path:
        pairs, source = _read(Path(path)), f"{FILE_VARIABLE} {path}"
    keys = set(api_keys)
    for name, value in pairs:
        if not (value.isascii() and value.isprintable()):
            raise CommandError(
                f"{source}: the token {name!r} has characters that no HTTP header can carry"
            )
        if value in keys:
            raise CommandError(
                f"{source}: the token {name!r} is also an API key, which must not open the admin "
                "routes; choose another"
            )
    return AdminTokens(AdminToken.of(name, value) for name, value in pairs)


def _read(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise CommandError(f"cannot read {FILE_VARIABLE} {path}: {reason}") from None
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 2:
            raise CommandError(
                f"{FILE_VARIABLE} {path} line {number}: expected TOKEN or NAME TOKEN, got "
                f"{len(words)} words"
            )
        name, token = (DEFAULT_NAME, words[0]) if len(words) == 1 else words
        try:
            check_name(name, what="token")
        except SpecError:
            raise CommandError(
                f"{FILE_VARIABLE} {path} line {number}: the token's name is not allowed: use "
                "letters, digits, '_', '-' or '.'"
            ) from None
        if name in (other for other, _ in pairs):
            raise CommandError(
                f"{FILE_VARIABLE} {path} line {number}: a second token named {name!r}"
            )
        pairs.append((name, token))
    if not pairs:
        raise CommandError(f"{FILE_VARIABLE} {path} holds no token")
    return pairs


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()
