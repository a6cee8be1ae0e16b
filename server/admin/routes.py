"""The admin routes, which show and change the profiles of a running server.

Each route needs an admin token (server/auth/admin_tokens.py). The answer to a change names the
version and sha256 that are then in force in every API process. `If-Match` with a version or sha256
refuses the change if another version is in force; `?dry_run=true` checks everything and changes
nothing. A query that a change does not take is refused.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer

from prefmix.mixing.shown_value import MAX_CHARS, shown
from prefmix.server.admin.change_queue import RETRY_AFTER_S
from prefmix.server.admin.in_place import SlotsBusyError
from prefmix.server.admin.live_weights import LiveWeights, NoStoreError
from prefmix.server.admin.policy_changes import FullCheckpointError, ManifestOwnsError
from prefmix.server.admin.schemas import ChangeAnswer, DefaultBody, ProfileBody, RollbackBody
from prefmix.server.admin.slot_room import NoSlotsError
from prefmix.server.admin.two_phase_commit import CommitError
from prefmix.server.auth.access_levels import Level
from prefmix.server.auth.middleware import unauthorized
from prefmix.server.auth.tokens import Tokens
from prefmix.server.http.errors import RequestError, error_response
from prefmix.server.http.openai_route import OpenAIRoute
from prefmix.server.http.request_json import refuse_repeated_names
from prefmix.server.slots.engine_slots import PolicyRefusedError
from prefmix.server.slots.policies_folder import PoliciesFolderError
from prefmix.weights.store import edits
from prefmix.weights.store.change import Change, Edit, Rollback
from prefmix.weights.store.errors import (
    PolicyInUseError,
    StaleVersionError,
    StoreBusyError,
    StoreError,
    StoreFileError,
    StoreFullError,
    StoreMissingError,
    StoreReadOnlyError,
    UnknownEntryError,
)
from prefmix.weights.store.format import document, from_document
from prefmix.weights.store.profiles import ProfileError, ProfileSet

ADMIN_KEY = "prefmix_admin"
"""The attribute of `app.state` that holds an AdminState."""

_STATUS: tuple[tuple[type[ValueError], HTTPStatus], ...] = (
    (StaleVersionError, HTTPStatus.PRECONDITION_FAILED),
    (UnknownEntryError, HTTPStatus.NOT_FOUND),
    (StoreBusyError, HTTPStatus.SERVICE_UNAVAILABLE),
    (CommitError, HTTPStatus.SERVICE_UNAVAILABLE),
    (StoreMissingError, HTTPStatus.CONFLICT),
    (NoStoreError, HTTPStatus.CONFLICT),
    (NoSlotsError, HTTPStatus.CONFLICT),
    (ManifestOwnsError, HTTPStatus.CONFLICT),
    (FullCheckpointError, HTTPStatus.CONFLICT),
    (SlotsBusyError, HTTPStatus.SERVICE_UNAVAILABLE),
    (PolicyInUseError, HTTPStatus.CONFLICT),
    (PolicyRefusedError, HTTPStatus.BAD_REQUEST),
    (PoliciesFolderError, HTTPStatus.BAD_REQUEST),
    (StoreFullError, HTTPStatus.INSUFFICIENT_STORAGE),
    (StoreReadOnlyError, HTTPStatus.CONFLICT),
    (StoreFileError, HTTPStatus.SERVICE_UNAVAILABLE),
    (StoreError, HTTPStatus.BAD_REQUEST),
    (ProfileError, HTTPStatus.BAD_REQUEST),
)
"""Status of each error; the first class that fits decides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdminState:
    """The objects that the admin routes use; one per API process."""

    tokens: Tokens
    live: LiveWeights


class AdminRoute(OpenAIRoute):
    """A route that checks the admin token and answers errors of the store with their status.

    One that changes something takes no query that it does not know: a mistyped `dry_run` would
    make the change.

    AccessMiddleware has checked the token before; here its name is read for the audit log.
    """

    def check_body(self, request: Request, body: Any) -> None:
        """Refuses a body that names a field twice. Raises: RequestError."""
        super().check_body(request, body)
        refuse_repeated_names(body)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wraps OpenAIRoute's handler."""
        handler = super().get_route_handler()

        @functools.wraps(handler)
        async def handle(request: Request) -> Response:
            given = request.headers.get("authorization", "")
            holder = admin_state(request).tokens.holder(given)
            if holder is None:
                return unauthorized(Level.ADMIN, given)
            request.state.admin_name = holder
            try:
                self._check_query(request)
                return await handler(request)
            except RequestError as error:
                return error.response()
            except ValueError as error:
                status = next((code for kind, code in _STATUS if isinstance(error, kind)), None)
                if status is None:
                    raise
                response = error_response(str(error), status=status)
                if isinstance(error, (StoreBusyError, CommitError, SlotsBusyError)):
                    response.headers["Retry-After"] = str(RETRY_AFTER_S)
                return response

        return handle

    def _check_query(self, request: Request) -> None:
        """Raises: RequestError for a key that a change does not take, or that is given twice."""
        if request.method == "GET":
            return
        allowed = [field.alias for field in self.dependant.query_params]
        num_given = Counter(key for key, _ in request.query_params.multi_items())
        for key, number in num_given.items():
            if key not in allowed:
                raise RequestError(
                    f"the query has {shown(key)}, which this route does not take; allowed: "
                    f"{', '.join(allowed)}",
                    param=key[:MAX_CHARS],
                )
            if number > 1:
                raise RequestError(f"the query names {key} {number} times; name it once", param=key)


router = APIRouter(
    prefix="/admin",
    tags=["admin"],
    route_class=AdminRoute,
    # Only for the OpenAPI page; AdminRoute checks the token before the body is read.
    dependencies=[Depends(HTTPBearer(auto_error=False, scheme_name="admin token"))],
)

ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"description": "No admin token, or a wrong one."},
    412: {"description": "If-Match names neither the version nor the sha256 of the store."},
    503: {"description": "Another change is under way; Retry-After says when to try again."},
}
DryRun = Annotated[bool, Query(description="Check everything and change nothing.")]
Drain = Annotated[
    bool,
    Query(description="Wait for requests under way if a policy's own slot alone is left for it."),
]
IfMatch = Annotated[
    str | None, Header(description='The "version" or "sha256" last seen; else 412.')
]


@router.get("/weights", responses=ERRORS)
def show_weights(request: Request) -> JSONResponse:
    """The profiles in force, with their provenance."""
    profiles = admin_state(request).live.current
    return JSONResponse(_described(profiles), headers=entity_tag(profiles))


@router.get("/weights/history", responses=ERRORS)
async def show_history(request: Request) -> StreamingResponse:
    """All kept versions, the present one last."""
    versions = await admin_state(request).live.history()
    return StreamingResponse(_one_by_one(versions), media_type="application/json")


@router.put("/profiles/{name:path}", responses=ERRORS)
async def put_profile(
    request: Request,
    name: str,
    body: ProfileBody,
    dry_run: DryRun = False,
    if_match: IfMatch = None,
) -> ChangeAnswer:
    """Adds or replaces one profile."""

    def edit(current: ProfileSet) -> ProfileSet:
        return edits.with_profile(
            current,
            name,
            body.weights,
            spec=spec,
            provenance=body.provenance,
            mixing=body.mixing,
            keeps_dormant=live.keeps_dormant,
        )

    live = admin_state(request).live
    spec = live.spec
    return await make_change(request, edit, f"put:{name:.64}", dry_run, if_match)


@router.delete("/profiles/{name:path}", responses=ERRORS)
async def delete_profile(
    request: Request, name: str, dry_run: DryRun = False, if_match: IfMatch = None
) -> ChangeAnswer:
    """Removes one profile; the default cannot be removed."""

    def edit(current: ProfileSet) -> ProfileSet:
        return edits.without_profile(current, name)

    return await make_change(request, edit, f"delete:{name:.64}", dry_run, if_match)


@router.put("/default", responses=ERRORS)
async def put_default(
    request: Request, body: DefaultBody, dry_run: DryRun = False, if_match: IfMatch = None
) -> ChangeAnswer:
    """Sets the profile of requests that choose no weights."""

    def edit(current: ProfileSet) -> ProfileSet:
        return edits.with_default(current, body.profile)

    return await make_change(request, edit, f"default:{body.profile:.64}", dry_run, if_match)


@router.post("/weights/apply", responses=ERRORS)
async def apply_document(
    request: Request,
    body: Annotated[dict[str, Any], Body(description="A document in the store's format.")],
    replace: Annotated[bool, Query(description="Drop all other profiles.")] = False,
    default: Annotated[bool, Query(description="Take the document's default as well.")] = False,
    dry_run: DryRun = False,
    if_match: IfMatch = None,
) -> ChangeAnswer:
    """Merges the profiles of a document, as `prefmix fit` writes it; all of it or nothing."""
    live = admin_state(request).live
    other = await asyncio.to_thread(
        from_document, body, source="the document", max_profiles=live.max_profiles
    )
    spec = live.spec
    applied = edits.replaced if replace else partial(edits.merged, with_its_default=default)

    def edit(current: ProfileSet) -> ProfileSet:
        return applied(
            current,
            other,
            source="the document",
            spec=spec,
            keeps_dormant=live.keeps_dormant,
        )

    return await make_change(request, edit, "replace" if replace else "apply", dry_run, if_match)


@router.post("/weights/rollback", responses=ERRORS)
async def roll_back(
    request: Request,
    body: RollbackBody | None = None,
    drain: Drain = False,
    dry_run: DryRun = False,
    if_match: IfMatch = None,
) -> ChangeAnswer:
    """Makes an earlier version's content the newest version; repairs a broken store file."""
    version = None if body is None else body.version
    edit = Rollback(admin_state(request).live.store, version)
    what = f"rollback:{version or 'last'}"
    return await make_change(request, edit, what, dry_run, if_match, drain=drain)


@router.post("/weights/reload", responses=ERRORS)
async def reload(request: Request, dry_run: DryRun = False) -> ChangeAnswer:
    """Reads the store's file again; a file that is refused changes nothing."""
    live = admin_state(request).live
    return _answer(
        await live.reload(who=request.state.admin_name, trigger="admin", dry_run=dry_run), dry_run
    )


async def make_change(
    request: Request,
    edit: Edit,
    what: str,
    dry_run: bool,
    if_match: str | None,
    *,
    drain: bool = False,
) -> ChangeAnswer:
    """Changes the profiles, their policies included, and describes the change.

    Args:
      what: the audit log's name for it.
      if_match: the header; None accepts any version.
      drain: replaces policies in their own slots where no other is free.
    """
    change = await admin_state(request).live.change(
        edit,
        who=request.state.admin_name,
        what=what,
        expected=None if if_match is None else _expected(if_match),
        dry_run=dry_run,
        drain=drain,
    )
    return _answer(change, dry_run)


def _answer(change: Change, dry_run: bool) -> ChangeAnswer:
    assert change.before is not None, "a server starts from a store that exists"
    return ChangeAnswer(
        version=change.after.version,
        sha256=change.after.sha256,
        previous_version=change.before.version,
        previous_sha256=change.before.sha256,
        changed=not change.is_noop,
        dry_run=dry_run,
        lost_mixings=change.lost_mixings,
        dormant=change.after.waiting(),
        set_aside=None if change.set_aside is None else str(change.set_aside),
    )


def _expected(if_match: str) -> str:
    """The version or hash in an If-Match header, without quotes and weak mark."""
    return if_match.strip().removeprefix("W/").strip('"')


def _one_by_one(versions: Iterator[ProfileSet]) -> Iterator[bytes]:
    """The JSON of all versions, of which never more than one is in memory."""
    yield b'{"versions":['
    for index, entry in enumerate(versions):
        yield b"," * (index > 0) + JSONResponse(_described(entry)).body
    yield b"]}"


def _described(profiles: ProfileSet) -> dict[str, Any]:
    return {**document(profiles), "sha256": profiles.sha256}


def entity_tag(profiles: ProfileSet) -> dict[str, str]:
    """The header by which a client names the profiles in its If-Match."""
    return {"ETag": f'"{profiles.sha256}"'}


def admin_state(request: Request) -> AdminState:
    """The state of the app that received `request`."""
    state: AdminState = getattr(request.app.state, ADMIN_KEY)
    return state
