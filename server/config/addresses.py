"""Settings that name hosts and addresses, checked."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator

HOSTS_ATTRIBUTE = "prefmix_allowed_hosts"
"""The attribute of vLLM's parsed arguments in which `prefmix serve` passes `allowed_hosts`."""

_HOST = re.compile(r"\*|\.?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


def _checked_host(name: str) -> str:
    if not _HOST.fullmatch(name):
        raise ValueError(
            "a host's name without scheme and port, .NAME for all names below it, or *"
        )
    return name


def _checked_proxy(address: str) -> str:
    if address != "*":
        try:
            ipaddress.ip_network(address)
        except ValueError:
            raise ValueError(
                "an address such as 10.0.0.7, a network such as 10.0.0.0/8, or *"
            ) from None
    return address


HostName = Annotated[str, AfterValidator(_checked_host)]
"""A name under which a server may be asked: NAME, .NAME for all names below it, or *."""

ProxyAddress = Annotated[str, AfterValidator(_checked_proxy)]
"""An address, a network, or * for everyone."""
