"""One API process's part in changes of policies, on slots without an engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
from starlette.testclient import TestClient

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.server.admin.listener import admin_app
from prefmix.server.admin.live_weights import LiveWeights
from prefmix.server.admin.policy_changes import PolicyChanges
from prefmix.server.admin.routes import AdminState
from prefmix.server.auth.tokens import Token, Tokens
from prefmix.server.slots.engine_slots import PolicyRefusedError
from prefmix.server.slots.policies_folder import PoliciesFolder
from prefmix.server.slots.policy_set import CurrentPolicies, PolicySet, configured
from prefmix.weights.store.profiles import CurrentProfiles, build_profile_set
from prefmix.weights.store.store import WeightsStore

ENGINE = MixtureSpec(
    policies=(Policy(name="a", model="org/a"),),
    reference=Policy(name="base", model="org/base"),
    base="org/base",
    adapter_slots=2,
    max_adapter_rank=8,
    has_prompts=True,
)
SPEC = configured(ENGINE)


class FakeSlots:
    """The slots of an engine, without one; an adapter whose parameters are b"bad" is refused."""

    def __init__(self, engine: MixtureSpec = ENGINE) -> None:
        self.engine = engine
        self.content: list[str | None] = [None] * engine.adapter_slots
        self.puts: list[tuple[int, str]] = []
        self.tried: list[str] = []
        self.after_put: Callable[[], object] | None = None
        self.cleared: list[int] = []
        self.kept: dict[int, str | None] = {}
        self.restored: list[int] = []

    async def keys(self) -> list[str | None]:
        return self.content

    async def clear(self, slot: int) -> float:
        if self.content[slot] is not None:
            self.content[slot] = None
            self.cleared.append(slot)
        return 0.0

    async def keep(self, slot: int) -> None:
        self.kept[slot] = self.content[slot]

    async def restore(self, slot: int, key: str | None) -> None:
        assert self.kept[slot] == key
        self.content[slot] = key
        self.restored.append(slot)

    async def read(self, name: str, folder: str) -> None:
        self.tried.append(name)
        if (Path(folder) / "adapter_model.safetensors").read_bytes() == b"bad":
            raise PolicyRefusedError(f"policy {name!r}: its adapter is bad")

    async def drop(self) -> None:
        self.tried.append("dropped")
        self.kept.clear()

    async def put(self, slot: int, name: str, folder: str, *, key: str) -> float:
        await self.read(name, folder)
        self.content[slot] = key
        self.puts.append((slot, name))
        if self.after_put is not None:
            self.after_put()
        return 0.0


async def check_texts(systems: Mapping[str, str]) -> None:
    """A template that refuses one word."""
    for name, text in systems.items():
        if "refused" in text:
            raise PolicyRefusedError(f"policy {name!r} has a system text that is refused")


class Server:
    """One API process's part: store, policies and routes."""

    def __init__(
        self,
        folder: Path,
        slots: FakeSlots,
        *,
        of: int = 1,
        name: str = "one",
        keeps_dormant: bool = False,
    ) -> None:
        self.store = WeightsStore(
            folder / "w.json", spec=SPEC, takes_added=True, takes_dormant=keeps_dormant
        )
        initial = self.store.create(build_profile_set({"even": {"a": 1, "base": 1}}, SPEC))
        self.slots = slots
        self.current = CurrentPolicies(PolicySet.of(slots.engine))
        self.profiles = CurrentProfiles(initial)
        (folder / "meet").mkdir(exist_ok=True)
        self.live = LiveWeights(
            spec=SPEC,
            profiles=self.profiles,
            store=self.store.path,
            folder=folder / "meet",
            num_processes=of,
            keeps_dormant=keeps_dormant,
            name=name,
            policies=PolicyChanges(
                self.current,
                slots,  # type: ignore[arg-type]
                PoliciesFolder(folder / "policies"),
                check_texts=check_texts,
                wait_s=0.0,
                drain_s=0.0,
            ),
        )
        tokens = Tokens([Token.of("ops", "secret")])
        self.client = TestClient(admin_app(AdminState(tokens=tokens, live=self.live)))

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        headers = {"Authorization": "Bearer secret", "Content-Type": "application/json", **headers}
        content = None if body is None else json.dumps(body)
        return self.client.request(method, f"/admin{path}", content=content, headers=headers)

    def names(self) -> tuple[str, ...]:
        assert self.current.current.spec.member_names == self.profiles.current.member_names
        return self.profiles.current.member_names


def write(folder: Path, name: str, parameters: bytes = b"1") -> dict[str, str]:
    adapter = folder / "policies" / name
    adapter.mkdir(parents=True, exist_ok=True)
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(parameters)
    return {"adapter": name}
