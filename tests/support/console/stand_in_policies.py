"""The admin routes of policies, as the console before a stand-in finds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

TOKEN = "token-of-the-stand-in"
BAD = "bad"
"""The folder of an adapter that is refused."""
BUSY = "requests under way (1 in one process) use the policy"


class StandInPolicies:
    """Names in weight order; those that are added follow those of the start."""

    def __init__(
        self,
        policies: Sequence[str],
        references: Sequence[str],
        *,
        num_slots: int,
        num_without_kv: int = 0,
    ) -> None:
        self._own = list(policies)
        self._references = list(references)
        self._num_slots, self._num_without_kv = num_slots, num_without_kv
        self.added: dict[str, dict[str, Any]] = {}
        """Name -> what was sent."""
        self.replaced_in_place: list[str] = []
        """The names that were sent with ?drain=true."""
        self.held: set[str] = set()
        """Policies that are not served now."""
        self.manifest: str | None = None
        self.in_use: set[str] = set()
        """Policies that go with drain only."""
        self.version = 1

    @property
    def policies(self) -> list[str]:
        return [*self._own, *self.added]

    @property
    def members(self) -> list[str]:
        return [*self.policies, *self._references]

    def router(self) -> APIRouter:
        """The routes, whose answers have the shape of the server's."""
        router = APIRouter(prefix="/admin/policies")

        @router.get("", response_model=None)
        def listed(request: Request) -> JSONResponse | dict[str, object]:
            if request.headers.get("authorization") != f"Bearer {TOKEN}":
                return _refusal(401, "no token")
            in_use = sum("kv_cache" in sent for sent in self.added.values())
            return {
                "version": self.version,
                "slots": {
                    "total": self._num_slots,
                    "free": self._num_slots - len(self.added),
                    "total_without_kv": self._num_without_kv,
                    "free_without_kv": self._num_without_kv - in_use,
                    "max_rank": 16,
                },
                "manifest": self.manifest,
                "policies": [self._about(name) for name in self.members],
            }

        @router.put("/{name}", response_model=None)
        def put(
            name: str, request: Request, body: dict[str, Any], drain: bool = False
        ) -> JSONResponse | dict[str, object]:
            if body["adapter"] == BAD:
                return _refusal(400, f"policy {name!r}: the adapter in {BAD!r} is cut short")
            self.replaced_in_place += [name] * drain
            sent = {key: value for key, value in body.items() if value is not None}
            return self._changed(request, {**self.added, name: sent})

        @router.delete("/{name}", response_model=None)
        def delete(
            name: str, request: Request, drain: bool = False
        ) -> JSONResponse | dict[str, object]:
            if name in self.in_use and not drain:
                return _refusal(503, BUSY)
            return self._changed(
                request, {key: self.added[key] for key in self.added.keys() - {name}}
            )

        return router

    def _about(self, name: str) -> dict[str, object]:
        sent = self.added.get(name, {})
        folder = {"adapter": sent["adapter"]} if "adapter" in sent else {}
        return {
            "name": name,
            "added": name in self.added,
            "has_prompt": "system" in sent,
            "kv_cache": sent.get("kv_cache", True),
            "ready": name not in self.held,
            **folder,
        }

    def _changed(
        self, request: Request, added: dict[str, dict[str, Any]]
    ) -> JSONResponse | dict[str, object]:
        if request.headers.get("if-match") != str(self.version):
            return _refusal(412, "the store is at another version")
        changed, self.added = added != self.added, added
        self.version += changed
        return {"version": self.version, "changed": changed}


def _refusal(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message}}, status_code=status)
