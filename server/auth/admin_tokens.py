"""Admin tokens: bearer tokens for changing weights, which the API keys do not open.

PREFMIX_ADMIN_TOKEN holds one token; the audit log calls its holder `admin`.
PREFMIX_ADMIN_TOKEN_FILE names a file of tokens (server/auth/tokens.py). Without either there are no
admin routes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from prefmix.server.auth.tokens import Token, Tokens, tokens_from
from prefmix.server.config.errors import CommandError

VARIABLE = "PREFMIX_ADMIN_TOKEN"
DEFAULT_NAME = "admin"


def admin_tokens(
    environ: Mapping[str, str] = os.environ, *, api_keys: Iterable[str] = ()
) -> Tokens:
    """Reads the tokens from the environment.

    Args:
      environ: the environment.
      api_keys: the API keys, none of which may be an admin token.
    Raises: CommandError, which never shows a token.
    """
    keys = set(api_keys)
    pairs = tokens_from(environ, VARIABLE, default_name=DEFAULT_NAME)
    for name, value in pairs:
        if value in keys:
            raise CommandError(
                f"the admin token {name!r} is also an API key, which must not open the admin "
                "routes; choose another"
            )
    return Tokens(Token.of(name, value) for name, value in pairs)
