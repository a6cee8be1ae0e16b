"""The profiles and policies in force in this process, and how a change of them reaches all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from prefmix.mixing.spec import MixtureSpec
from prefmix.server.admin.policy_changes import PolicyChanges
from prefmix.server.admin.two_phase_commit import CommitError, Message, TellAll
from prefmix.server.slots.policy_set import PolicySet
from prefmix.weights.store.for_mixture import for_mixture
from prefmix.weights.store.format import document, from_document
from prefmix.weights.store.numbering import Served
from prefmix.weights.store.profiles import CurrentProfiles, ProfileSet
from prefmix.weights.store.store import HISTORY_LIMIT


@dataclass(frozen=True, slots=True)
class Coming:
    """Profiles and policies that are about to be put in force."""

    profiles: ProfileSet
    policies: PolicySet | None
    """None where no policy can be added."""
    held: frozenset[int] | None = None
    """The slots that the process which makes the change holds after it; None for this process."""


class InForce:
    """The part of one API process in every change, its own or another's."""

    def __init__(
        self,
        *,
        spec: MixtureSpec,
        profiles: CurrentProfiles,
        policies: PolicyChanges | None,
        tell_all: TellAll,
        shown: Callable[[ProfileSet], None],
        takes_dormant: bool,
    ) -> None:
        """Args:
        spec: the mixture of the configuration.
        profiles: the profiles that requests read; only this object changes them.
        policies: what brings added policies into the engine; None where none can be added.
        tell_all: sends a message to the other API processes.
        shown: called with profiles that are in force from now on.
        takes_dormant: takes profiles that name absent policies, as dormant ones.
        """
        self._spec = spec
        self._profiles = profiles
        self._policies = policies
        self._tell_all = tell_all
        self._shown = shown
        self._takes_dormant = takes_dormant
        self._prepared: Coming | None = None
        self._sha256_of = {profiles.current.version: profiles.current.sha256}

    @contextlib.asynccontextmanager
    async def coming(self, profiles: ProfileSet, *, drain: bool = False) -> AsyncIterator[Coming]:
        """A set of profiles with its policies, which are in the engine for the block."""
        if self._policies is None:
            yield Coming(profiles, None)
            return
        async with self._policies.provided(profiles.added, self._tell_all, drain=drain) as policies:
            yield Coming(profiles, policies)

    @property
    def served(self) -> Served:
        """The numbering of what is and was in force, as the store needs it."""
        return Served(in_force=self._profiles.current, sha256_of=self._sha256_of)

    def is_now(self, profiles: ProfileSet) -> bool:
        """True for the profiles that are in force."""
        current = self._profiles.current
        return (profiles.version, profiles.sha256) == (current.version, current.sha256)

    async def prepare_all(self, coming: Coming) -> None:
        """Has the other API processes accept what is to come. Raises: CommitError."""
        slots: dict[str, int] = {}
        held: list[int] = []
        if coming.policies is not None and self._policies is not None:
            slots = dict(coming.policies.slots)
            held = sorted(self._policies.current.held_after(coming.policies))
        await self._tell_all(
            {
                "kind": "prepare",
                "document": document(coming.profiles, with_texts=True),
                "slots": slots,
                "held": held,
            }
        )

    async def commit_all(self, coming: Coming) -> None:
        """Puts in force, here and in the others, what all have accepted. Raises: CommitError."""
        profiles = coming.profiles
        self.put(coming)
        try:
            await self._tell_all({"kind": "commit", "sha256": profiles.sha256})
        except CommitError as error:
            raise CommitError(
                f"version {profiles.version} is in force here, but {error}; that process gets it "
                "when it next reads the store"
            ) from None

    def put(self, coming: Coming) -> None:
        """Puts profiles and policies in force in this process."""
        profiles = coming.profiles
        self._profiles.swap(profiles)
        if coming.policies is not None and self._policies is not None:
            # In one step of the event loop.
            self._policies.current.swap(coming.policies, held=coming.held)
        self._sha256_of = dict(list(self._sha256_of.items())[1 - HISTORY_LIMIT :])
        self._sha256_of[profiles.version] = profiles.sha256
        self._shown(profiles)

    def _checked(self, message: Message) -> Coming:
        """The profiles and policies of another API process's message."""
        found = from_document(message.get("document"), source="another API process")
        found = hashed(
            for_mixture(
                found,
                self._spec,
                source="another API process",
                takes_added=self._policies is not None,
                takes_dormant=self._takes_dormant,
            )
        )
        if self._policies is None:
            return Coming(found, None)
        slots = message.get("slots", {})
        policies = self._policies.current.current.with_added(found.added, slots)
        return Coming(found, policies, held=frozenset(message.get("held", ())))

    async def receive(self, message: Message) -> None:
        """Does as a message of another API process says.

        Raises: ValueError, which refuses it.
        """
        kind = message.get("kind")
        if kind == "prepare":
            self._prepared = await asyncio.to_thread(self._checked, message)
        elif kind == "commit":
            prepared, self._prepared = self._prepared, None
            if prepared is None or prepared.profiles.sha256 != message.get("sha256"):
                raise ValueError("it was asked to put in force what it has not prepared")
            self.put(prepared)
        elif kind in ("unused", "unnamed"):
            if self._policies is not None:
                check = (
                    self._policies.check_own if kind == "unused" else self._policies.check_unnamed
                )
                check(int(str(message.get("slot"))))
        elif kind in ("hold", "release"):
            if self._policies is not None:
                current, slot = self._policies.current, int(str(message.get("slot")))
                if kind == "hold":
                    current.hold(slot, is_empty=message.get("is_empty") is True)
                else:
                    current.release(slot)
        else:
            raise ValueError(f"it does not know the message {kind!r}")


def hashed(profiles: ProfileSet) -> ProfileSet:
    """The set, once its hash is computed: in a thread, as that takes time."""
    assert profiles.sha256
    return profiles
