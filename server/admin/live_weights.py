"""Changes of a running server's profiles: a whole change in all API processes, or nothing.

A change is computed under the store's lock, accepted by every API process, written to the store,
and only then put in force, by one assignment in each process. Running requests keep the weights
they were admitted with.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

from prefmix.mixing.spec import MixtureSpec
from prefmix.server.admin import change_queue
from prefmix.server.admin.change_queue import ChangeQueue, Turn
from prefmix.server.admin.in_force import InForce, hashed
from prefmix.server.admin.policy_changes import PolicyChanges
from prefmix.server.admin.two_phase_commit import ApiProcesses, Message
from prefmix.server.telemetry import audit_log
from prefmix.server.telemetry.metrics import WeightsMetrics
from prefmix.weights.store.change import Change, Edit
from prefmix.weights.store.errors import StoreFormatError, StoreMissingError
from prefmix.weights.store.profiles import MAX_PROFILES, CurrentProfiles, ProfileSet
from prefmix.weights.store.store import WeightsStore

_RESTORE_S = 600.0
"""Seconds that a process waits at its start until another has brought the policies."""


class NoStoreError(ValueError):
    """The server has no store, so it could not keep a change."""

    def __init__(self) -> None:
        super().__init__(
            "this server was started without a weights store, so a change could not be kept; "
            "start it with --weights-store PATH"
        )


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
        keeps_dormant: bool = False,
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
          keeps_dormant: keeps profiles that name absent policies, as dormant ones.
          policies: what brings added policies into the engine; None where none can be added.
        """
        self.policies = policies
        self.keeps_dormant = keeps_dormant
        self.spec = spec
        self.max_profiles = max_profiles
        self._profiles = profiles
        self._store = (
            None
            if store is None
            else WeightsStore(
                store,
                spec=spec,
                max_profiles=max_profiles,
                takes_added=policies is not None,
                takes_dormant=keeps_dormant,
            )
        )
        self._processes = ApiProcesses(
            folder, num_processes=num_processes, receive=self._receive, name=name
        )
        self._metrics = WeightsMetrics(profiles.current)
        self._in_force = InForce(
            spec=spec,
            profiles=profiles,
            policies=policies,
            tell_all=self._processes.tell_all,
            shown=self._metrics.in_force,
            takes_dormant=keeps_dormant,
        )
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
        drain: bool = False,
    ) -> Change:
        """Edits the profiles, in the store and in force.

        Args:
          edit: computes the new profile set from the present one.
          who: the audit log's name for the one who makes the change.
          what: the audit log's name for the change.
          expected: the version or sha256 that the caller has seen; None accepts any.
          dry_run: checks everything and changes nothing.
          drain: replaces policies in their own slots, once requests have left them, where no other
            slot is free.
        Raises: StoreError, ProfileError, NoStoreError, CommitError; nothing has changed.
        """
        if dry_run:
            async with self._looks.turn():
                change = await asyncio.to_thread(
                    self.store.change,
                    edit,
                    expected=expected,
                    dry_run=True,
                    served=self._in_force.served,
                )
            self._check_owner(change)
            if self.policies is not None and change.after.added != self.current.added:
                async with self._alone():
                    await self.policies.try_out(change.after.added, drain=drain)
            return change
        try:
            change = await self._audited(
                lambda turn: self._change(edit, expected, turn, who, drain=drain),
                who=who,
                what=what,
            )
        except ValueError:
            self._metrics.changed("refused")
            raise
        self._metrics.changed("unchanged" if change.is_noop else "ok")
        return change

    async def follow_manifest(self, edit: Edit, *, who: str, drain: bool = False) -> Change:
        """Edits the added policies by the manifest, which logs and counts its refusals itself.

        Args: drain: as of `change`.
        Raises: as `change`.
        """
        async with self._alone() as turn:
            change = await self._change(edit, None, turn, who, drain=drain, is_manifest=True)
        audit_log.changed(who, "manifest", change)
        return change

    async def bring_missing(self) -> None:
        """Brings adapters into slots that wait for them, whose files are there again.

        Raises: as PolicyChanges.bring_missing; CommitError also if another change goes on.
        """
        policies = self.policies
        if policies is not None and policies.current.held_name(policies.current.all_slots):
            async with self._alone():
                await policies.bring_missing(self.tell_all)

    def _check_owner(self, change: Change) -> None:
        """Raises: ManifestOwnsError for policies that another than the manifest would change."""
        before = self.current if change.before is None else change.before
        if self.policies is not None and change.after.added != before.added:
            self.policies.check_owner()

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
                await self.policies.restore(self.current.added)

    async def _change(
        self,
        edit: Edit,
        expected: str | None,
        turn: Turn,
        who: str,
        *,
        drain: bool = False,
        is_manifest: bool = False,
    ) -> Change:
        async with contextlib.AsyncExitStack() as stack:
            prepared = self.store.prepared(
                edit, expected=expected, served=self._in_force.served, wait_s=turn.left_s, by=who
            )
            # In a thread, as the store's lock and the disk may block the event loop.
            change = await asyncio.to_thread(prepared.__enter__)
            stack.callback(prepared.__exit__, None, None, None)
            if not is_manifest:
                self._check_owner(change)
            # Even if the store needs no write, its file may be newer than the profiles in force.
            is_ahead = not self._in_force.is_now(change.after)
            if is_ahead:
                coming = await stack.enter_async_context(
                    self._in_force.coming(change.after, drain=drain)
                )
                await self._in_force.prepare_all(coming)
            await asyncio.to_thread(self.store.commit, change)
            if is_ahead:
                await self._in_force.commit_all(coming)
        return change

    async def _reload(self, turn: Turn) -> Change:
        before, after = self.current, await asyncio.to_thread(self._take_up, turn)
        if not self._in_force.is_now(after):
            async with self._in_force.coming(after) as coming:
                await self._in_force.prepare_all(coming)
                await self._in_force.commit_all(coming)
        return Change(before, after)

    def _take_up(self, turn: Turn) -> ProfileSet:
        with _rollback_named():
            return hashed(self.store.take_up(self._in_force.served, wait_s=turn.left_s))

    def _read(self) -> ProfileSet:
        with _rollback_named():
            return hashed(self.store.read(served=self._in_force.served))

    async def tell_all(self, message: Message) -> None:
        """Sends a message to every other API process. Raises: CommitError if one refuses."""
        await self._processes.tell_all(message)

    async def _receive(self, message: Message) -> Message:
        """Answers a message of another API process, or of the launcher after SIGHUP."""
        kind = message.get("kind")
        if kind == "reload":
            await self.reload(who=str(message.get("who")), trigger="signal")
        else:
            await self._in_force.receive(message)
        return {"version": self.current.version}


@contextlib.contextmanager
def _rollback_named() -> Iterator[None]:
    """Adds the way out to the refusal of a store file."""
    try:
        yield
    except (StoreFormatError, StoreMissingError) as error:
        hint = "put a good file in place, or 'prefmix weights rollback' writes what is in force"
        raise type(error)(f"{error}; {hint}") from None
