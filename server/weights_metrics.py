"""What Prometheus sees of the profiles: the version in force and how the last reload went."""

from __future__ import annotations

import time

from prometheus_client import Gauge

from weights.profiles import ProfileSet

# With several API processes the newest value of any of them counts.
_VERSION = Gauge(
    "prefmix_weights_version",
    "Version of the profiles in force.",
    multiprocess_mode="mostrecent",
)
_SUCCESSFUL = Gauge(
    "prefmix_weights_last_reload_successful",
    "1 if the last reload of the weights store was successful, 0 if it was refused.",
    multiprocess_mode="mostrecent",
)
_SUCCESS_TIME = Gauge(
    "prefmix_weights_last_reload_success_timestamp_seconds",
    "When the last successful reload of the weights store was, in Unix time.",
    multiprocess_mode="mostrecent",
)


class WeightsMetrics:
    """The gauges of this process."""

    def __init__(self, profiles: ProfileSet) -> None:
        self.in_force(profiles)
        self.reload_succeeded()

    def in_force(self, profiles: ProfileSet) -> None:
        """Another set is in force."""
        _VERSION.set(profiles.version)

    def reload_succeeded(self) -> None:
        """The store was read, whether or not it had changed."""
        _SUCCESSFUL.set(1)
        _SUCCESS_TIME.set(time.time())

    def reload_failed(self) -> None:
        """The store was refused; the old profiles still serve."""
        _SUCCESSFUL.set(0)
