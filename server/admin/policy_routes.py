"""The admin routes of policies that come and go while the server runs.

Policies are versioned with the profiles, so a change answers as a change of these does. See
`docs/policies_at_runtime.md`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer

from prefmix.server.admin.policy_changes import PolicyChanges
from prefmix.server.admin.policy_counts import counted
from prefmix.server.admin.routes import (
    ERRORS,
    AdminRoute,
    Drain,
    DryRun,
    IfMatch,
    admin_state,
    entity_tag,
    make_change,
)
from prefmix.server.admin.schemas import ChangeAnswer, PolicyBody
from prefmix.server.telemetry import audit_log
from prefmix.weights.store import edits
from prefmix.weights.store.added import added_document
from prefmix.weights.store.profiles import ProfileSet

router = APIRouter(
    prefix="/admin",
    tags=["admin"],
    route_class=AdminRoute,
    dependencies=[Depends(HTTPBearer(auto_error=False, scheme_name="admin token"))],
)


@router.get("/policies", responses=ERRORS)
def list_policies(request: Request) -> JSONResponse:
    """The policies in force: those of the configuration, and those that were added."""
    live = admin_state(request).live
    profiles, added = live.current, added_document(live.current.added)
    engine = None if live.policies is None else live.policies.engine
    texts = {} if live.policies is None else live.policies.current.current.prompts.systems
    held = frozenset() if live.policies is None else live.policies.current.held_names
    num_slots = 0 if engine is None else engine.adapter_slots
    without_kv = 0 if engine is None else engine.slots_without_kv
    in_use = sum(not each.kv_cache for each in live.current.added.values())
    body: dict[str, Any] = {
        "version": profiles.version,
        "sha256": profiles.sha256,
        "slots": {
            "total": num_slots,
            "free": num_slots - len(added),
            "total_without_kv": without_kv,
            "free_without_kv": without_kv - in_use,
            "max_rank": 0 if engine is None else engine.max_adapter_rank,
        },
        "manifest": None if live.policies is None else _text(live.policies.manifest),
        "policies": [
            {
                "name": name,
                "added": name in added,
                "has_prompt": name in texts,
                "kv_cache": True,
                "ready": name not in held,
                **added.get(name, {}),
            }
            for name in profiles.member_names
        ],
    }
    return JSONResponse(body, headers=entity_tag(profiles))


@router.put("/policies/{name:path}", responses=ERRORS)
async def put_policy(
    request: Request,
    name: str,
    body: PolicyBody,
    drain: Drain = False,
    dry_run: DryRun = False,
    if_match: IfMatch = None,
) -> ChangeAnswer:
    """Adds an adapter or a prompt as a policy, or replaces one that was added.

    No profile gives a new one weight.
    """
    live = admin_state(request).live

    what = f"put-policy:{name:.64}"

    async def put() -> ChangeAnswer:
        changes = _changes(request)
        with _refusals_logged(request, what, dry_run=dry_run):
            changes.check_owner()
            policy = await changes.described(
                body.adapter, body.system, kv_cache=body.kv_cache, model=body.model
            )

        def edit(current: ProfileSet) -> ProfileSet:
            return edits.with_policy(
                current, name, policy, spec=live.spec, keeps_dormant=live.keeps_dormant
            )

        return await make_change(request, edit, what, dry_run, if_match, drain=drain)

    return await (put() if dry_run else counted(put(), "put"))


@router.delete("/policies/{name:path}", responses=ERRORS)
async def delete_policy(
    request: Request,
    name: str,
    drain: Annotated[bool, Query(description="Let requests under way end with it.")] = False,
    dry_run: DryRun = False,
    if_match: IfMatch = None,
) -> ChangeAnswer:
    """Removes an added policy that no profile gives weight."""
    live = admin_state(request).live

    what = f"delete-policy:{name:.64}"

    async def delete() -> ChangeAnswer:
        changes = _changes(request)
        with _refusals_logged(request, what, dry_run=dry_run):
            changes.check_owner()
            if not drain:
                await changes.check_unused(name, live.tell_all)

        def edit(current: ProfileSet) -> ProfileSet:
            return edits.without_policy(
                current, name, spec=live.spec, keeps_dormant=live.keeps_dormant
            )

        return await make_change(request, edit, what, dry_run, if_match)

    return await (delete() if dry_run else counted(delete(), "delete"))


@contextlib.contextmanager
def _refusals_logged(request: Request, what: str, *, dry_run: bool) -> Iterator[None]:
    """Logs what refuses a change before it begins; from then on the change logs its own end."""
    try:
        yield
    except ValueError as error:
        if not dry_run:
            audit_log.refused(request.state.admin_name, what, str(error))
        raise


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _changes(request: Request) -> PolicyChanges:
    changes = admin_state(request).live.policies
    assert changes is not None, "a server that is served has them"
    return changes
