"""The requests of our own clients that may go through a proxy which the environment names.

A request carries a key or a token. Over plain http a proxy reads and could keep it; `http_proxy` is
set for other programs, and this one's user may not know of it. Over https a proxy sees an encrypted
tunnel only. This machine's own addresses mean another machine to a proxy.
"""

from __future__ import annotations

import ipaddress
import urllib.parse


def may_use_proxy(url: str) -> bool:
    """True if a request to a server may go through a proxy. Args: url: http or https."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme == "https" and not is_this_machine(parts.hostname or "")


def is_this_machine(host: str) -> bool:
    """True for loopback names and addresses, and those that mean any address of this machine."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)
