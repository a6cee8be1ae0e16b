"""The policies of each version as their changes were answered, and what a request may have seen."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from resilience.harness.policy_server import BASE, OWN


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """One version; times are monotonic seconds."""

    contents: Mapping[str, str]
    """The content of each policy, by its name."""
    asked_at: float
    """When the change was sent: from then on it may be in force."""
    answered_at: float
    """When its answer had come: from then on it is, in every process."""


class PolicyLedger:
    """Written by the one who changes the policies, read by its clients."""

    def __init__(self, version: int) -> None:
        now = time.monotonic()
        first = Version(contents={OWN: OWN, BASE: BASE}, asked_at=now, answered_at=now)
        self.versions = {version: first}
        self._lock = threading.Lock()

    @property
    def contents(self) -> Mapping[str, str]:
        """The contents of the newest version."""
        return self.versions[max(self.versions)].contents

    def note(self, version: int, contents: Mapping[str, str], *, asked_at: float) -> None:
        """Notes a change that has been answered just now."""
        with self._lock:
            assert version == max(self.versions) + 1, f"{version} after {max(self.versions)}"
            self.versions[version] = Version(
                contents=dict(contents), asked_at=asked_at, answered_at=time.monotonic()
            )

    def may_see(self, version: int, *, sent_at: float, head_at: float) -> bool:
        """True if a request may have been admitted with a version. The last change may be one that
        is under way, and has no entry until its answer has come; ask when all is over."""
        found, following = self.versions.get(version), self.versions.get(version + 1)
        if found is None:
            return False
        is_old = following is not None and following.answered_at < sent_at
        return found.asked_at <= head_at and not is_old

    def may_lack(self, name: str, *, sent_at: float, head_at: float) -> bool:
        """True if a version that a request may have been admitted with lacks a policy."""
        return any(
            name not in each.contents and self.may_see(number, sent_at=sent_at, head_at=head_at)
            for number, each in self.versions.items()
        )
