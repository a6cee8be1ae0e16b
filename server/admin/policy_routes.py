"""The admin routes of policies that come and go while the server runs.

Policies are versioned with the profiles, so a change answers as a change of these does. See
`docs/policies_at_runtime.md`.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer

from prefmix.server.admin.policy_changes import PolicyChanges
from prefmix.server.admin.routes import (
    ERRORS,
    AdminRoute,
    DryRun,
    IfMatch,
    admin_state,
    entity_tag,
    make_change,
)
from prefmix.server.admin.schemas import ChangeAnswer, PolicyBody
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
    num_slots = 0 if engine is None else engine.adapter_slots
    body: dict[str, Any] = {
        "version": profiles.version,
        "sha256": profiles.sha256,
        "slots": {
            "total": num_slots,
            "free": num_slots - len(added),
            "max_rank": 0 if engine is None else engine.max_adapter_rank,
        },
        "policies": [
            {"name": name, "added": name in added, **added.get(name, {})}
            for name in profiles.member_names
        ],
    }
    return JSONResponse(body, headers=entity_tag(profiles))


@router.put("/policies/{name}", responses=ERRORS)
async def put_policy(
    request: Request,
    name: str,
    body: PolicyBody,
    dry_run: DryRun = False,
    if_match: IfMatch = None,
) -> ChangeAnswer:
    """Adds a policy, or replaces one that was added; no profile gives a new one weight."""
    live = admin_state(request).live
    policy = await _changes(request).described(body.adapter)

    def edit(current: ProfileSet) -> ProfileSet:
        return edits.with_policy(current, name, policy, spec=live.spec)

    return await make_change(request, edit, f"put-policy:{name:.64}", dry_run, if_match)


@router.delete("/policies/{name}", responses=ERRORS)
async def delete_policy(
    request: Request,
    name: str,
    drain: Annotated[bool, Query(description="Let requests under way end with it.")] = False,
    dry_run: DryRun = False,
    if_match: IfMatch = None,
) -> ChangeAnswer:
    """Removes an added policy that no profile gives weight."""
    live = admin_state(request).live
    if not drain and live.policies is not None:
        await live.policies.check_unused(name, live.tell_all)

    def edit(current: ProfileSet) -> ProfileSet:
        return edits.without_policy(current, name, spec=live.spec)

    return await make_change(request, edit, f"delete-policy:{name:.64}", dry_run, if_match)


def _changes(request: Request) -> PolicyChanges:
    changes = admin_state(request).live.policies
    assert changes is not None, "a server that is served has them"
    return changes
