"""The manifest: a file that names all added policies, watched in place of requests to change them.

    policies:
      careful: careful/step-400                       # its adapter's folder in --policies-dir
      kind: {adapter: kind/step-100, system: Be kind} # the body of PUT /admin/policies/kind
    drain: true                                       # its ?drain=true; false by default

Its policies are applied as one change, by one API process for all: all of them, or nothing. What is
refused is logged and counted once, and tried again when the manifest, one of its adapters or the
profiles have changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prefmix.mixing.name_list import listed
from prefmix.mixing.shown_value import shown
from prefmix.server.admin.live_weights import LiveWeights
from prefmix.server.admin.policy_counts import CONFLICTS
from prefmix.server.admin.schemas import PolicyBody
from prefmix.server.admin.store_watch import LOOK_INTERVAL_S, Fingerprint, fingerprint, watch
from prefmix.server.admin.two_phase_commit import CommitError
from prefmix.server.config.yaml_file import YamlError, read_yaml
from prefmix.server.slots.policies_folder import PoliciesFolder, PoliciesFolderError
from prefmix.server.telemetry import audit_log, policy_metrics
from prefmix.weights.store import edits
from prefmix.weights.store.added import AddedPolicy
from prefmix.weights.store.durable_file import file_lock

WHO = "policies-manifest"
"""The audit log's name for the manifest."""

_FIRST_S = 10.0
"""Seconds that a start waits for the other API processes before it serves without them."""

_LOOK_S = 0.05


class ManifestError(ValueError):
    """A manifest that cannot be read, or is none."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of a manifest."""

    policies: Mapping[str, PolicyBody]
    drain: bool = False
    """True replaces policies in their own slots where no other is free, and waits for requests."""


class PoliciesManifest:
    """The manifest of a server, as one API process follows it."""

    def __init__(
        self, path: Path, live: LiveWeights, folder: PoliciesFolder | None, *, run_folder: Path
    ) -> None:
        """Args:
        path: the manifest.
        live: changes the policies in all API processes.
        folder: where adapters may lie; None without one.
        run_folder: the API processes' folder, private to this server.
        """
        self._path = path
        self._live = live
        self._folder = folder
        self._lock_file = run_folder / "manifest-lock"
        self._lock: AbstractContextManager[None] | None = None
        """Held by the one API process that follows the manifest."""
        self._known: dict[str, tuple[object, AddedPolicy]] = {}
        """The policies of the manifest, with the state of the files that were hashed."""
        self._told: object = None
        """The refusal that was logged, with the state of the files that it is for."""

    async def begin(self) -> None:
        """Applies the manifest before the server answers, if no other API process does."""
        if not await self._is_elected():
            return None
        deadline = time.monotonic() + _FIRST_S
        while True:
            try:
                return await self._apply()
            except CommitError:  # other API processes are not up yet
                if time.monotonic() >= deadline:
                    return None
            except ValueError:
                return None
            await asyncio.sleep(_LOOK_S)

    async def follow(self) -> None:
        """Applies the manifest whenever something that it depends on has changed; never returns."""
        while not await self._is_elected():
            await asyncio.sleep(LOOK_INTERVAL_S)
        await watch(self._path, self._apply, state=self._state)

    def close(self) -> None:
        """Lets another API process follow the manifest."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.__exit__(None, None, None)

    async def _is_elected(self) -> bool:
        if self._lock is None:
            lock = file_lock(self._lock_file, timeout_s=0)
            with contextlib.suppress(TimeoutError):
                await asyncio.to_thread(lock.__enter__)
                self._lock = lock
        return self._lock is not None

    async def _apply(self) -> None:
        """Raises: ValueError, once it is logged; nothing has changed."""
        try:
            manifest = await asyncio.to_thread(self.read)
            added = await self._wanted(manifest.policies)
            if added != self._live.current.added:
                edit = functools.partial(
                    edits.with_policies,
                    added=added,
                    spec=self._live.spec,
                    keeps_dormant=self._live.keeps_dormant,
                )
                await self._live.follow_manifest(edit, who=WHO, drain=manifest.drain)
                policy_metrics.count_change("manifest", "ok")
            await self._live.bring_missing()
        except ValueError as error:
            policy_metrics.manifest_in_force(False)
            # As they are now: a manifest that came meanwhile is not told of a second time.
            files = await asyncio.to_thread(self._files)
            path, reason = str(self._path), str(error)
            reason = reason if path in reason else f"{path}: {reason}"
            if (told := (reason, files)) != self._told:
                self._told = told
                audit_log.refused(WHO, "manifest", reason)
                is_conflict = isinstance(error, CONFLICTS)
                policy_metrics.count_change("manifest", "conflict" if is_conflict else "refused")
            raise
        self._told = None
        policy_metrics.manifest_in_force(True)

    async def _wanted(self, bodies: Mapping[str, PolicyBody]) -> dict[str, AddedPolicy]:
        """The manifest's policies. Raises: ManifestError."""
        policies = self._live.policies
        assert policies is not None, "a manifest comes with slots"
        found = {}
        for name, body in bodies.items():
            files = await asyncio.to_thread(self._adapter_files, body)
            before, policy = self._known.get(name, (None, None))
            if policy is None or before != (body, files) or None in files:
                try:
                    policy = await policies.described(
                        body.adapter, body.system, kv_cache=body.kv_cache, model=body.model
                    )
                except ValueError as error:
                    raise ManifestError(f"{self._path}: policies.{name}: {error}") from None
            found[name] = policy
            self._known[name] = (body, files), policy
        self._known = {name: self._known[name] for name in found}
        return found

    def read(self) -> Manifest:
        """The manifest as it is on the disk. Raises: ManifestError."""
        if not self._path.exists():
            raise ManifestError(
                f"the manifest of policies {self._path} does not exist; the policies stay as they "
                "are until it does"
            )
        try:
            data = read_yaml(self._path)
        except YamlError as error:
            raise ManifestError(f"the manifest of policies: {error}") from None
        expected = "a table of NAME: FOLDER, which may be empty ({})"
        if not {"policies"} <= data.keys() <= {"policies", "drain"}:
            raise ManifestError(
                f"{self._path}: the manifest has the keys {listed(data) or 'none'}, expected "
                f"policies, {expected}, and beside it drain at most"
            )
        table, drain = data["policies"], data.get("drain", False)
        if not isinstance(table, dict):
            raise ManifestError(f"{self._path}: policies is {shown(table)}, expected {expected}")
        if not isinstance(drain, bool):
            raise ManifestError(f"{self._path}: drain is {shown(drain)}, expected true or false")
        bodies = {self._name(name): self._body(name, entry) for name, entry in table.items()}
        return Manifest(bodies, drain)

    def _name(self, name: object) -> str:
        if not isinstance(name, str):
            raise ManifestError(
                f"{self._path}: policies: {shown(name)} is no text; put it in quotes"
            )
        return name

    def _body(self, name: object, entry: Any) -> PolicyBody:
        if not isinstance(entry, (str, dict)):
            raise ManifestError(
                f"{self._path}: policies.{name} is {shown(entry)}, expected the adapter's folder, "
                "or a table with adapter, system or both"
            )
        try:
            return PolicyBody.model_validate(
                {"adapter": entry} if isinstance(entry, str) else entry
            )
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, ("policies", name, *first["loc"])))
            said = first["msg"].removeprefix("Value error, ")
            raise ManifestError(f"{self._path}: {where}: {said}") from None

    def _state(self) -> object:
        return self._files(), self._live.current.version

    def _files(self) -> tuple[object, ...]:
        """A value that changes whenever the manifest or a file that it names does."""
        try:
            bodies = self.read().policies
        except ManifestError:
            return (fingerprint(self._path),)
        found = [self._adapter_files(body) for body in bodies.values()]
        return fingerprint(self._path), *found

    def _adapter_files(self, body: PolicyBody) -> tuple[Fingerprint, ...]:
        if self._folder is None or body.adapter is None:
            return ()
        try:
            return tuple(fingerprint(path) for path in self._folder.files(body.adapter))
        except PoliciesFolderError:
            return (None,)
