"""Secret tokens, read from the environment or a file and kept as digests.

A file holds one token, or a line `NAME TOKEN` for each token; empty lines and lines that begin with
# are skipped. Docker's and Kubernetes' secrets are such files. No message shows a token.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from prefmix.mixing.spec import SpecError, check_name
from prefmix.server.config.errors import CommandError

WEAK_CHARS = 16
"""Length below which a token counts as weak: nothing slows down someone who guesses."""

_MAX_CHARS = 2**20


@dataclass(frozen=True, slots=True)
class Token:
    """One token: its name for the log, and a digest to compare requests with."""

    name: str
    digest: bytes

    @classmethod
    def of(cls, name: str, token: str) -> Token:
        """Makes the token called `name`."""
        return cls(name, _digest(token))


class Tokens:
    """The tokens that open the routes of one level."""

    def __init__(self, tokens: Iterable[Token]) -> None:
        self._tokens = tuple(tokens)

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def holder(self, authorization: str) -> str | None:
        """The name of the token in an Authorization header; None if there is no known token."""
        scheme, _, token = authorization.partition(" ")
        digest = _digest(token.strip())
        # All tokens are compared, so that the time taken does not reveal a near match.
        names = [
            known.name for known in self._tokens if secrets.compare_digest(digest, known.digest)
        ]
        return names[0] if names and scheme.lower() == "bearer" else None


def tokens_from(
    environ: Mapping[str, str], variable: str, *, default_name: str
) -> list[tuple[str, str]]:
    """Reads the tokens in `variable`, or in the file that `variable`_FILE names.

    Args:
      environ: the environment; empty variables count as not set.
      variable: a name such as PREFMIX_API_KEY.
      default_name: the name of a token without one.
    Returns: (name, token) of each token; an empty list if neither variable is set.
    Raises: CommandError naming the variable, the file and its line.
    """
    token = environ.get(variable, "").strip()
    path = environ.get(f"{variable}_FILE", "")
    if token and path:
        raise CommandError(f"{variable} and {variable}_FILE are both set; keep one of them")
    if path:
        source = f"{variable}_FILE {path}"
        pairs = _read(Path(path), source, default_name)
    else:
        source, pairs = variable, [(default_name, token)] if token else []
    for name, value in pairs:
        check_token(value, source=f"{source}: the token {name!r}")
    return pairs


def check_token(value: str, *, source: str) -> None:
    """Raises CommandError if no HTTP header can carry a token. Args: source: the token's origin."""
    if not value:
        raise CommandError(f"{source} is empty; give one, or leave the setting out", exit_code=2)
    if not (value.isascii() and value.isprintable()) or value != value.strip():
        raise CommandError(f"{source} has characters that no HTTP header can carry")


def exposed_file(environ: Mapping[str, str], variable: str) -> str | None:
    """A warning if every user of this machine may read or write the tokens' file; else None."""
    path = environ.get(f"{variable}_FILE", "")
    try:
        mode = os.stat(path).st_mode if path else 0
    except OSError:
        return None
    if not mode & (stat.S_IROTH | stat.S_IWOTH):
        return None
    return (
        f"every user of this machine may {'write' if mode & stat.S_IWOTH else 'read'} "
        f"{variable}_FILE {path}; chmod 600 it"
    )


def _read(path: Path, source: str, default_name: str) -> list[tuple[str, str]]:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_CHARS + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise CommandError(f"cannot read {source}: {reason}") from None
    if len(text) > _MAX_CHARS:
        raise CommandError(f"{source} has more than {_MAX_CHARS} characters; it holds no tokens")
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 2:
            raise CommandError(
                f"{source} line {number}: expected TOKEN or NAME TOKEN, got {len(words)} words"
            )
        name, token = (default_name, words[0]) if len(words) == 1 else words
        try:
            check_name(name, what="token")
        except SpecError:
            raise CommandError(
                f"{source} line {number}: the token's name is not allowed: use letters, digits, "
                "'_', '-' or '.'"
            ) from None
        if name in (other for other, _ in pairs):
            raise CommandError(f"{source} line {number}: a second token named {name!r}")
        pairs.append((name, token))
    if not pairs:
        raise CommandError(f"{source} holds no token")
    return pairs


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()
