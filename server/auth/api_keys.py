"""API keys: they open the routes that run or describe a policy.

PREFMIX_API_KEY holds one key, PREFMIX_API_KEY_FILE names a file of keys (server/auth/tokens.py), so
that no key appears in a command line, which every user of the machine can read. vLLM's own
`--api-key` and VLLM_API_KEY work as well.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from prefmix.server.auth.tokens import Token, Tokens, check_token, tokens_from
from prefmix.server.config.errors import CommandError

VARIABLE = "PREFMIX_API_KEY"
VLLM_VARIABLE = "VLLM_API_KEY"


def api_keys(given: Sequence[str] | None, environ: Mapping[str, str] = os.environ) -> list[str]:
    """All API keys of the server; without any the server is open.

    Args:
      given: the values of vLLM's `--api-key`, which take precedence over VLLM_API_KEY.
      environ: the environment; empty variables count as not set.
    Raises: CommandError, which never shows a key.
    """
    for key in given or ():
        check_token(key, source="the API key (--api-key)")
    own = [key for _, key in tokens_from(environ, VARIABLE, default_name="key")]
    others = list(given or filter(None, [environ.get(VLLM_VARIABLE, "").strip()]))
    if own and others and set(own) != set(others):
        raise CommandError(
            f"{VARIABLE} or {VARIABLE}_FILE is set, and {'--api-key' if given else VLLM_VARIABLE} "
            "with another key; keep one of them (a file may hold several keys)"
        )
    for key in others:
        check_token(key, source=f"the API key ({VLLM_VARIABLE})")
    return own or others


def client_key(environ: Mapping[str, str] = os.environ) -> str | None:
    """The key that a command sends to a server; None if the environment has none.

    Raises: CommandError, which never shows a key.
    """
    return next(iter(api_keys(None, environ)), None)


def as_tokens(keys: Sequence[str]) -> Tokens:
    """The keys as Tokens, to compare a request's key with."""
    return Tokens(Token.of("key", key) for key in keys)
