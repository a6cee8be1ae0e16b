"""Changes of a running server's profiles: a whole change in all API processes, or nothing.

A change is computed under the store's lock, accepted by every API process, written to the store,
and only then put in force, by one assignment in each process. Running requests keep the weights
they were admitted with.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prefmix.mixing.spec import MixtureSpec
from prefmix.server.admin import change_queue
from prefmix.server.admin.change_queue import ChangeQueue, Turn
from prefmix.server.admin.policy_changes import PolicyChanges
from prefmix.server.admin.two_phase_commit import ApiProcesses, CommitError, Message
from prefmix.server.slots.policy_set import PolicySet
from prefmix.server.telemetry import audit_log
from prefmix.server.telemetry.metrics import WeightsMetrics
from prefmix.weights.store.change import Change, Edit
from prefmix.weights.store.errors import StoreFormatError, StoreMissingError
from prefmix.weights.store.format import document, for_mixture, from_document
from prefmix.weights.store.numbering import Served
from prefmix.weights.store.profiles import MAX_PROFILES, CurrentProfiles, ProfileSet
from prefmix.weights.store.store import HISTORY_LIMIT, WeightsStore

_RESTORE_S = 600.0
"""Seconds that a process waits at its start until another has brought the policies."""


class NoStoreError(ValueError):
    """The server has no store, so it could not keep a change."""

    def __init__(self) -> None:
        super().__init__(
            "this server was started without a weights store, so a change could not be kept; "
            "start it with --weights-store PATH"
        )


@dataclass(frozen=True, slots=True)
class _Coming:
    """Profiles and policies that are about to be put in force."""

    profiles: ProfileSet
    policies: PolicySet | None
    """None where no policy can be added."""


class LiveWeights:
    """The profiles in force in this process, and how to change them in all processes."""

    def __init__(
        self,
        *,
        spec: MixtureSpec,
        profiles: CurrentProfiles,
        store: Path | None,
        folder: Path,
        num_processes: int,
        name: str | None = None,
        max_profiles: int = MAX_PROFILES,
        policies: PolicyChanges | None = None,
    ) -> None:
        """Call `start` to let the other processes reach this one.

        Args:
          spec: the mixture of the configuration.
          profiles: the profiles that requests read; only this object changes them.
          store: the store's file; None without one.
          folder: the API processes' folder, private to this server.
          num_processes: number of API processes.
          name: this process's name in messages; None uses its process id.
          max_profiles: the most profiles there may be.
          policies: what brings added policies into the engine; None where none can be added.
        """
        self.policies = policies
        self.spec = spec
        self.max_profiles = max_profiles
        self._profiles = profiles
        self._store = (
            None
            if store is None
            else WeightsStore(
                store, spec=spec, max_profiles=max_profiles, takes_added=policies is not None
            )
        )
        self._processes = ApiProcesses(
            folder, num_processes=num_processes, receive=self._receive, name=name
        )
        self._metrics = WeightsMetrics(profiles.current)
        self._prepared: _Coming | None = None
        self._sha256_of = {profiles.current.version: profiles.current.sha256}
        self._changes, self._looks = (
            ChangeQueue(max_waiting=change_queue.MAX_WAITING, wait_s=change_queue.WAIT_S)
            for _ in range(2)
        )

    async def start(self) -> None:
        """Lets the other API processes reach this one."""
        await self._processes.start()

    def close(self) -> None:
        """Cuts this process off from the others."""
        self._processes.close()

    @property
    def current(self) -> ProfileSet:
        """The profiles in force."""
        return self._profiles.current

    @property
    def store(self) -> WeightsStore:
        """The store. Raises: NoStoreError if the server has none."""
        if self._store is None:
            raise NoStoreError
        return self._store

    async def change(
        self,
        edit: Edit,
        *,
        who: str,
        what: str,
        expected: str | None = None,
        dry_run: bool = False,
    ) -> Change:
        """Edits the profiles, in the store and in force.

        Args:
          edit: computes the new profile set from the present one.
          who: the audit log's name for the one who makes the change.
          what: the audit log's name for the change.
          expected: the version or sha256 that the caller has seen; None accepts any.
          dry_run: checks everything and changes nothing.
        Raises: StoreError, ProfileError, NoStoreError, CommitError; nothing has changed.
        """
        if dry_run:
            async with self._looks.turn():
                change = await asyncio.to_thread(
                    self.store.change, edit, expected=expected, dry_run=True, served=self._served
                )
            if self.policies is not None and change.after.added != self.current.added:
                async with self._alone():
                    await self.policies.try_out(change.after.added)
            return change
        try:
            change = await self._audited(
                lambda turn: self._change(edit, expected, turn, who), who=who, what=what
            )
        except ValueError:
            self._metrics.changed("refused")
            raise
        self._metrics.changed("unchanged" if change.is_noop else "ok")
        return change

    async def reload(
        self, *, who: str, trigger: str, dry_run: bool = False, is_quiet: bool = False
    ) -> Change:
        """Reads the store again and puts its profiles in force.

        Args:
          who: the audit log's name for the one who asked.
          trigger: the cause, one of prefmix.server.telemetry.metrics.TRIGGERS.
          dry_run: reads and checks only.
          is_quiet: writes no audit line if nothing has changed.
        Raises: as `change`; the profiles in force stay in force.
        """
        if dry_run:
            async with self._looks.turn():
                return Change(self.current, await asyncio.to_thread(self._read))
        try:
            change = await self._audited(self._reload, who=who, what="reload", is_quiet=is_quiet)
        except ValueError:
            self._metrics.reload_refused(trigger)
            raise
        self._metrics.reloaded(trigger, changed=not change.is_noop)
        return change

    async def history(self) -> Iterator[ProfileSet]:
        """All kept versions, the present one last, each read when it is asked for.

        Raises: StoreError, NoStoreError.
        """
        async with self._looks.turn():
            return await asyncio.to_thread(self.store.each_version)

    async def _audited(
        self,
        make: Callable[[Turn], Awaitable[Change]],
        *,
        who: str,
        what: str,
        is_quiet: bool = False,
    ) -> Change:
        try:
            async with self._alone() as turn:
                change = await make(turn)
        except ValueError as error:
            audit_log.refused(who, what, str(error))
            raise
        if not (is_quiet and change.is_noop):
            audit_log.changed(who, what, change)
        return change

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[Turn]:
        """The turn of one change over all API processes."""
        async with (
            self._changes.turn() as turn,
            self._processes.lock(timeout_s=turn.left_s),
        ):
            yield turn

    async def restore_policies(self) -> None:
        """Brings the policies of the profiles in force into the engine, at a start.

        Raises: ValueError if they cannot be served; the text is one sentence.
        """
        if self.policies is not None:
            # Another process may be at it, and read large files.
            async with self._processes.lock(timeout_s=_RESTORE_S):
                self.policies.current.swap(await self.policies.restore(self.current.added))

    async def _coming(self, profiles: ProfileSet) -> _Coming:
        """A set of profiles with its policies, which are in the engine then."""
        if self.policies is None:
            return _Coming(profiles, None)
        return _Coming(profiles, await self.policies.provide(profiles.added, self.tell_all))

    async def _change(self, edit: Edit, expected: str | None, turn: Turn, who: str) -> Change:
        async with contextlib.AsyncExitStack() as stack:
            prepared = self.store.prepared(
                edit, expected=expected, served=self._served, wait_s=turn.left_s, by=who
            )
            # In a thread, as the store's lock and the disk may block the event loop.
            change = await asyncio.to_thread(prepared.__enter__)
            stack.callback(prepared.__exit__, None, None, None)
            # Even if the store needs no write, its file may be newer than the profiles in force.
            is_ahead = not self._is_in_force(change.after)
            if is_ahead:
                coming = await self._coming(change.after)
                await self._prepare_all(coming)
            await asyncio.to_thread(self.store.commit, change)
            if is_ahead:
                await self._commit_all(coming)
        return change

    async def _reload(self, turn: Turn) -> Change:
        before, after = self.current, await asyncio.to_thread(self._take_up, turn)
        if not self._is_in_force(after):
            coming = await self._coming(after)
            await self._prepare_all(coming)
            await self._commit_all(coming)
        return Change(before, after)

    def _take_up(self, turn: Turn) -> ProfileSet:
        with _rollback_named():
            return _hashed(self.store.take_up(self._served, wait_s=turn.left_s))

    def _read(self) -> ProfileSet:
        with _rollback_named():
            return _hashed(self.store.read(served=self._served))

    @property
    def _served(self) -> Served:
        return Served(in_force=self.current, sha256_of=self._sha256_of)

    def _is_in_force(self, profiles: ProfileSet) -> bool:
        current = self.current
        return (profiles.version, profiles.sha256) == (current.version, current.sha256)

    async def tell_all(self, message: Message) -> None:
        """Sends a message to every other API process. Raises: CommitError if one refuses."""
        await self._processes.tell_all(message)

    async def _prepare_all(self, coming: _Coming) -> None:
        slots = {} if coming.policies is None else dict(coming.policies.slots)
        await self._processes.tell_all(
            {"kind": "prepare", "document": document(coming.profiles), "slots": slots}
        )

    async def _commit_all(self, coming: _Coming) -> None:
        profiles = coming.profiles
        self._put_in_force(coming)
        try:
            await self._processes.tell_all({"kind": "commit", "sha256": profiles.sha256})
        except CommitError as error:
            raise CommitError(
                f"version {profiles.version} is in force here, but {error}; that process gets it "
                "when it next reads the store"
            ) from None

    def _put_in_force(self, coming: _Coming) -> None:
        profiles = coming.profiles
        self._profiles.swap(profiles)
        if coming.policies is not None and self.policies is not None:
            self.policies.current.swap(coming.policies)  # in one step of the event loop
        self._sha256_of = dict(list(self._sha256_of.items())[1 - HISTORY_LIMIT :])
        self._sha256_of[profiles.version] = profiles.sha256
        self._metrics.in_force(profiles)

    def _checked(self, message: Message) -> _Coming:
        """The profiles and policies of another API process's message."""
        found = from_document(message.get("document"), source="another API process")
        found = _hashed(
            for_mixture(
                found,
                self.spec,
                source="another API process",
                takes_added=self.policies is not None,
            )
        )
        if self.policies is None:
            return _Coming(found, None)
        slots = message.get("slots", {})
        return _Coming(found, PolicySet.of(self.policies.engine, found.added, slots))

    async def _receive(self, message: Message) -> Message:
        """Answers a message of another API process, or of the launcher after SIGHUP."""
        kind = message.get("kind")
        if kind == "prepare":
            self._prepared = await asyncio.to_thread(self._checked, message)
        elif kind == "commit":
            prepared, self._prepared = self._prepared, None
            if prepared is None or prepared.profiles.sha256 != message.get("sha256"):
                raise ValueError("it was asked to put in force what it has not prepared")
            self._put_in_force(prepared)
        elif kind == "unused":
            if self.policies is not None:
                self.policies.check_own(int(str(message.get("slot"))))
        elif kind == "reload":
            await self.reload(who=str(message.get("who")), trigger="signal")
        else:
            raise ValueError(f"it does not know the message {kind!r}")
        return {"version": self.current.version}


@contextlib.contextmanager
def _rollback_named() -> Iterator[None]:
    """Adds the way out to the refusal of a store file."""
    try:
        yield
    except (StoreFormatError, StoreMissingError) as error:
        hint = "put a good file in place, or 'prefmix weights rollback' writes what is in force"
        raise type(error)(f"{error}; {hint}") from None


def _hashed(profiles: ProfileSet) -> ProfileSet:
    """The set, once its hash is computed: in a thread, as that takes time."""
    assert profiles.sha256
    return profiles
