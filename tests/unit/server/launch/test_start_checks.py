"""Checks of the command line before the engine starts; those of ports in use are in test_main."""

from __future__ import annotations

from typing import Any

import pytest

from prefmix.server.auth.tokens import Token, Tokens
from prefmix.server.config.errors import CommandError
from prefmix.server.config.serve_config import ServeConfig
from prefmix.server.launch.start_checks import check_admin_port


def test_an_admin_port_needs_a_token_and_to_be_another_port() -> None:
    policies: Any = {"a": {"model": "org/a"}}
    tokens = Tokens([Token.of("admin", "secret")])
    check_admin_port(ServeConfig(policies=policies), Tokens([]))
    check_admin_port(ServeConfig(policies=policies, admin_port=9001), tokens)
    with pytest.raises(CommandError, match="no admin token; set PREFMIX_ADMIN_TOKEN"):
        check_admin_port(ServeConfig(policies=policies, admin_port=9001), Tokens([]))
    with pytest.raises(CommandError, match="are both 8000"):
        check_admin_port(ServeConfig(policies=policies, admin_port=8000), tokens)
