"""Label values of which there may be any number in a server's life: only so many become series.

Every scrape writes every series, and Prometheus keeps each for as long as it keeps anything. A
series that was begun cannot end where several API processes add theirs up. So the first values that
a process serves have series of their own, and all further ones share one.
"""

from __future__ import annotations

from collections.abc import Iterable

OTHER = "(other)"
"""The label that further values share; neither a profile nor a hash can have this name."""


class BoundedLabels:
    """The values that are labels, in one API process."""

    def __init__(self, most: int) -> None:
        """Args: most: values that may have series of their own."""
        self._most = most
        self._values: set[str] = set()

    def add(self, values: Iterable[str]) -> list[str]:
        """Gives values series of their own while there is room; returns those that have them."""
        wanted = list(values)
        for value in wanted:
            if len(self._values) < self._most:
                self._values.add(value)
        return self.shown(wanted)

    def shown(self, values: Iterable[str]) -> list[str]:
        """The values that have series of their own, in the given order."""
        return [value for value in values if value in self._values]

    def label(self, value: str) -> str:
        """The label that a value counts under."""
        return value if value in self._values else OTHER


PROFILES = BoundedLabels(most=100)
"""Labels for profiles: 100 profiles of 4 policies are 1,200 series, which a scrape writes in 25 ms.
"""

HASHES = BoundedLabels(most=1000)
"""Labels for content hashes, which last only where several API processes add their series up."""

POLICIES = BoundedLabels(most=100)
"""Labels for policies where several API processes add their series up. Those of the configuration
come first; elsewhere a policy's series end with it, and slots bound their number."""
