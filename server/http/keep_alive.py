"""How long idle connections stay open, the same for all listeners."""

from __future__ import annotations

KEEP_ALIVE_S = 75
"""Seconds a connection may rest between two requests. Longer than the 60 s of common proxies and
load balancers: the side that reuses connections must close them, or a request is lost."""
