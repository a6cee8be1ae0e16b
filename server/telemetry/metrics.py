"""Prometheus metrics of the mixture, beside vLLM's own. docs/metrics.md lists them all.

Over several API processes counters are added, and a gauge has the newest value of any process.
Labels take values from bounded sets only: policies, profiles, reasons.
"""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from prefmix.mixing.spec import MixtureSpec
from prefmix.mixing.ways_to_mix import MIXINGS
from prefmix.server.telemetry import bounded_labels
from prefmix.weights.store.profiles import CUSTOM_PROFILE, ProfileSet
from prefmix.weights.store.profiles import NO_PROFILE as NO_PROFILE  # for those that count

OUTCOMES = ("ok", "rejected", "error", "cancelled", "refused", "timeout", "drained")
REASONS = (
    "all_zero",
    "ambiguous",
    "empty",
    "negative",
    "not_a_number",
    "not_finite",
    "out_of_range",
    "sum",
    "unknown_policy",
    "unknown_profile",
    "wrong_length",
    "wrong_type",
)
TRIGGERS = ("admin", "signal", "watch")
RESULTS = ("ok", "unchanged", "refused")
SHARED = "shared"
"""Policy label of parameters that several policies use."""


def gauge(name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
    """Makes a gauge that has the newest value of any API process."""
    return Gauge(name, text, labels, multiprocess_mode="mostrecent")


REQUESTS = Counter(
    "prefmix_requests",
    "Requests for text by profile and how they ended: ok, rejected (4xx), error (5xx), cancelled "
    "by the client, refused (503: overloaded or ending), timeout (504), drained (cut by the end of "
    "the server). Profile custom is weights in the request, none a request refused before.",
    ["profile", "outcome"],
)
MIXED = Counter(
    "prefmix_requests_mixed", "Admitted requests for text by their way of mixing.", ["mixing"]
)
PROMPT_TOKENS = Counter(
    "prefmix_prompt_tokens",
    "Tokens of prompts of the policies' own, by the policy that reads them.",
    ["policy"],
)
REJECTED = Counter(
    "prefmix_weights_rejected", "Requests refused because of their weights, by reason.", ["reason"]
)
POLICY_FAILURES = Counter(
    "prefmix_policy_failures",
    "Requests that ended with an error because the policy computed NaN or infinity.",
    ["policy"],
)
AUTH_FAILURES = Counter(
    "prefmix_auth_failures",
    "Requests without a valid credential: key is the API key, admin the admin token.",
    ["surface"],
)
_PROFILE_WEIGHT = gauge(
    "prefmix_profile_weight",
    "Weight of each policy in each profile in force.",
    ["profile", "policy"],
)
_DEFAULT_PROFILE = gauge(
    "prefmix_default_profile", "1 for the profile of requests that name none.", ["profile"]
)
_POLICIES = gauge(
    "prefmix_policies",
    "Policies and references in force: of the configuration, and added to the running server.",
    ["origin"],
)
_POLICY_STALL = gauge(
    "prefmix_policy_stall_seconds",
    "How long the engine stood still for the last policy that was added; 0 before the first.",
)
_DORMANT = gauge("prefmix_dormant_profiles", "Profiles that wait for policies which are not there.")
_VERSION = gauge("prefmix_weights_version", "Version of the profiles in force.")
_INFO = gauge(
    "prefmix_weights_info", "1 for the content hash of the profiles in force.", ["sha256"]
)
_SUCCESSFUL = gauge(
    "prefmix_weights_last_reload_successful",
    "1 if the last reload of the weights store was successful, 0 if it was refused.",
)
_SUCCESS_TIME = gauge(
    "prefmix_weights_last_reload_success_timestamp_seconds",
    "When the last successful reload of the weights store was, in Unix time.",
)
_RELOADS = Counter(
    "prefmix_weights_reloads",
    "Reloads of the weights store, by trigger and result.",
    ["trigger", "result"],
)
_CHANGES = Counter(
    "prefmix_weights_changes", "Changes of the profiles over the admin API.", ["result"]
)
_TOKEN_WEIGHT = Histogram(
    "prefmix_token_weight",
    "Weight of each policy in the drawing of a token, over the measured tokens.",
    ["policy"],
    buckets=[step / 10 for step in range(11)],
)
_TOKENS = Counter(
    "prefmix_statistics_tokens",
    "Generated tokens at which the mixture was measured: all tokens of a sample of steps.",
)
_POLICY_TOKENS = Counter(
    "prefmix_policy_tokens",
    "Measured tokens of requests that give the policy weight; without weight it may not run.",
    ["policy"],
)
_KL = Counter(
    "prefmix_kl_nats",
    "Sum of KL(mixture || policy) over prefmix_policy_tokens_total, in nats.",
    ["policy"],
)
_ENTROPY = Counter(
    "prefmix_entropy_nats",
    "Sum of the mixture's entropy over prefmix_statistics_tokens_total, in nats.",
)
_AGREEMENT = Counter(
    "prefmix_agreement_tokens",
    "Tokens of prefmix_policy_tokens_total that were the policy's own first choice.",
    ["policy"],
)
_STEP_SECONDS = Counter(
    "prefmix_step_seconds",
    "Engine time of the measured steps: forward is all policies' passes, mix LM heads and mixing.",
    ["part"],
)
_STEPS = Counter("prefmix_step_samples", "Engine steps that were measured.")
_PARAMETER_BYTES = gauge(
    "prefmix_parameter_bytes",
    "Bytes of parameters on one rank that only this policy uses; shared: those of several.",
    ["policy"],
)
_KV_BYTES = gauge(
    "prefmix_kv_bytes_per_token", "Bytes of KV cache per token and policy, on one rank.", ["policy"]
)
_BUILD = gauge(
    "prefmix_build_info",
    "1, with the versions of the software and the layout as labels.",
    ["version", "vllm", "torch", "layout"],
)


class WeightsMetrics:
    """Metrics of the profiles in force, and of reloads and changes."""

    def __init__(self, profiles: ProfileSet) -> None:
        """Args:
        profiles: the profiles in force at the start.
        """
        self._shown: ProfileSet | None = None
        for trigger in TRIGGERS:
            for result in RESULTS:
                _RELOADS.labels(trigger, result)
        for result in RESULTS:
            _CHANGES.labels(result)
        self.in_force(profiles)
        _SUCCESSFUL.set(1)
        _SUCCESS_TIME.set(time.time())

    def in_force(self, profiles: ProfileSet) -> None:
        """Shows the profiles that are in force from now on."""
        before, self._shown = self._shown, profiles
        if before is not None:
            lost = [name for name in before.member_names if name not in profiles.member_names]
            for policy in lost:
                _forget_policy(policy, before.profiles)
            gone = [name for name in before.profiles if name not in profiles.profiles]
            for name in bounded_labels.PROFILES.shown(gone):
                _forget(_DEFAULT_PROFILE, name)
                for policy in before.member_names:
                    if policy not in lost and policy_label(policy) == policy:
                        _forget(_PROFILE_WEIGHT, name, policy)
            if before.sha256 != profiles.sha256:
                _forget(_INFO, _hash_label(before))
        _expect_policies(profiles.member_names)
        # The default first, so that it is among those with series of their own.
        shown = bounded_labels.PROFILES.add(dict.fromkeys([profiles.default, *profiles.profiles]))
        for name in shown:
            _DEFAULT_PROFILE.labels(name).set(name == profiles.default)
            for policy, weight in profiles.weights(name).items():
                if policy_label(policy) == policy:  # others share a series, and it has no weight
                    _PROFILE_WEIGHT.labels(name, policy).set(weight)
        _expect_requests(shown)
        if len(shown) < len(profiles.profiles):
            _expect_requests((bounded_labels.OTHER,))
        _POLICIES.labels("configuration").set(len(profiles.member_names) - len(profiles.added))
        _POLICIES.labels("added").set(len(profiles.added))
        _DORMANT.set(len(profiles.dormant))
        _VERSION.set(profiles.version)
        _INFO.labels(_hash_label(profiles)).set(1)

    def reloaded(self, trigger: str, *, changed: bool) -> None:
        """Counts a reload of the store, changed or not."""
        _RELOADS.labels(trigger, "ok" if changed else "unchanged").inc()
        _SUCCESSFUL.set(1)
        _SUCCESS_TIME.set(time.time())

    def reload_refused(self, trigger: str) -> None:
        """Counts a reload that was refused; the old profiles stay in force."""
        _RELOADS.labels(trigger, "refused").inc()
        _SUCCESSFUL.set(0)

    def changed(self, result: str) -> None:
        """Counts a change over the admin API. Args: result: one of RESULTS."""
        _CHANGES.labels(result).inc()


class MixtureMetrics:
    """Metrics of the engine's measurements and of its sizes."""

    def __init__(
        self, spec: MixtureSpec, names: Callable[[], Sequence[str | None]] | None = None
    ) -> None:
        """Args:
        spec: the engine's mixture.
        names: gives the name of each member at this moment; None for one that nobody can name.
        """
        self._members = spec.member_names
        self._names = names or (lambda: spec.member_names)
        for reason in REASONS:
            REJECTED.labels(reason)
        for mixing in MIXINGS if spec.base is not None else MIXINGS[:1]:
            MIXED.labels(mixing)
        _expect_requests((CUSTOM_PROFILE, NO_PROFILE))
        _expect_policies(filter(None, self._names()))
        for part in ("forward", "mix"):
            _STEP_SECONDS.labels(part)
        layout = "full checkpoints" if spec.base is None else "shared trunk"
        versions = [importlib.metadata.version(package) for package in ("prefmix", "torch")]
        _BUILD.labels(versions[0], _vllm_version(), versions[1], layout).set(1)

    def sizes(self, sizes: Mapping[str, Sequence[int]]) -> None:
        """Shows the engine's sizes. Args: sizes: the answer of MixtureWorker.prefmix_sizes."""
        for name, size in zip((*self._members, SHARED), sizes["parameters"], strict=True):
            _PARAMETER_BYTES.labels(name).set(size)
        for name, size in zip(self._members, sizes["kv_per_token"], strict=True):
            _KV_BYTES.labels(name).set(size)

    def measured(self, sample: Mapping[str, Any]) -> None:
        """Adds a sample. Args: sample: the answer of MixtureStatisticsCollector.take_sample."""
        _STEPS.inc(sample["steps"])
        for part, seconds in sample["seconds"].items():
            _STEP_SECONDS.labels(part).inc(seconds)
        _TOKENS.inc(sample["tokens"])
        _ENTROPY.inc(max(sample["entropy"], 0.0))
        names = self._names()
        for index, name in enumerate(names):
            if name is None:  # the last tokens of a policy that has gone
                continue
            label = policy_label(name)
            _POLICY_TOKENS.labels(label).inc(sample["tokens_by_member"][index])
            _AGREEMENT.labels(label).inc(sample["agreement"][index])
            # A KL of equal distributions may come out as -1e-9; counters only rise.
            _KL.labels(label).inc(max(sample["kl"][index], 0.0))
        for weights_M, count in sample["weights"]:
            for name, weight in zip(names, weights_M, strict=True):
                for _ in range(count if name is not None else 0):
                    _TOKEN_WEIGHT.labels(policy_label(name or "")).observe(weight)


def _expect_requests(profiles: Iterable[str]) -> None:
    # A series that exists from the start with 0 can be told from one that is missing.
    for profile in profiles:
        for outcome in OUTCOMES:
            REQUESTS.labels(profile, outcome)


_OF_POLICY = (
    *(_POLICY_TOKENS, _KL, _AGREEMENT, _TOKEN_WEIGHT),
    *(POLICY_FAILURES, PROMPT_TOKENS),
)


_GONE: dict[str, None] = {}
"""Policies whose series have ended, the last of them last; their last requests begin none again."""

_MOST_GONE = 1000


def _expect_policies(names: Iterable[str]) -> None:
    names = list(names)
    for name in names:
        _GONE.pop(name, None)
    for label in dict.fromkeys(map(policy_label, names)):
        for each in _OF_POLICY:
            each.labels(label)


def policy_label(name: str) -> str:
    """The label that a policy counts under."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:  # its series end with it
        return bounded_labels.OTHER if name in _GONE else name
    bounded_labels.POLICIES.add([name])
    return bounded_labels.POLICIES.label(name)


def _forget_policy(name: str, profiles: Iterable[str]) -> None:
    """Ends the series of a policy that has gone; with several processes counters stay."""
    for profile in bounded_labels.PROFILES.shown(profiles):
        if policy_label(name) == name:
            _forget(_PROFILE_WEIGHT, profile, name)
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        for each in _OF_POLICY:
            each.remove(name)
        _GONE[name] = None
        if len(_GONE) > _MOST_GONE:
            del _GONE[next(iter(_GONE))]


def policy_came(stall_s: float) -> None:
    """Notes how long the engine stood still for a policy that was added, in seconds."""
    _POLICY_STALL.set(stall_s)


def count_request(profile: str, outcome: str) -> None:
    """Counts the end of a request for text.

    Args:
      profile: the profile of its weights, CUSTOM_PROFILE or NO_PROFILE.
      outcome: one of OUTCOMES.
    """
    if profile not in (CUSTOM_PROFILE, NO_PROFILE):
        bounded_labels.PROFILES.add([profile])
        profile = bounded_labels.PROFILES.label(profile)
    REQUESTS.labels(profile, outcome).inc()


def _hash_label(profiles: ProfileSet) -> str:
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:  # the series ends with the version
        return profiles.sha256
    bounded_labels.HASHES.add([profiles.sha256])
    return bounded_labels.HASHES.label(profiles.sha256)


def _forget(gauge: Gauge, *labels: str) -> None:
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:  # series cannot be removed then
        gauge.labels(*labels).set(0)
    else:
        gauge.remove(*labels)


def _vllm_version() -> str:
    import vllm

    return str(vllm.__version__)
