"""The targets of `prefmix weights`: a store file, or a running server by its admin routes."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from prefmix.weights.store import edits
from prefmix.weights.store.durable_file import read_regular_file
from prefmix.weights.store.errors import StoreFileError, StoreMissingError
from prefmix.weights.store.format import document, from_document, parse
from prefmix.weights.store.profiles import ProfileSet
from prefmix.weights.store.store import Change, Edit, Rollback, WeightsStore

ANSWER_TIMEOUT_S = 30.0
"""Longest wait for a server's answer."""


class ServerError(ValueError):
    """A server that refused or could not be reached. One sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Precondition:
    """The condition under which a change is made."""

    expected: str | None = None
    """Version or sha256 that must still be in force; None accepts any."""
    dry_run: bool = False
    """True checks everything and changes nothing."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The outcome of a change."""

    previous_version: int | None
    """The version before; None if there was no store."""
    version: int
    sha256: str
    is_changed: bool
    set_aside: str | None = None
    """Path at which the content of a broken store file is kept; None if it was not broken."""

    @classmethod
    def of(cls, change: Change) -> Receipt:
        """Reports a change of a store file."""
        before = None if change.before is None else change.before.version
        aside = None if change.set_aside is None else str(change.set_aside)
        return cls(before, change.after.version, change.after.sha256, not change.is_noop, aside)


class Target(Protocol):
    """A place where profiles are kept. Every method may raise ValueError, one sentence."""

    name: str

    def read(self) -> ProfileSet:
        """Reads the profiles in force."""

    def history(self) -> list[ProfileSet]:
        """Reads every version that is kept, the present one last."""

    def set_profile(
        self, name: str, preferences: Mapping[str, float], precondition: Precondition
    ) -> Receipt:
        """Adds or replaces a profile."""

    def delete_profile(self, name: str, precondition: Precondition) -> Receipt:
        """Removes a profile."""

    def set_default(self, name: str, precondition: Precondition) -> Receipt:
        """Makes a profile the default."""

    def rollback(self, version: int | None, precondition: Precondition) -> Receipt:
        """Returns to an earlier version's content."""

    def apply(self, file: Path, precondition: Precondition, *, replace: bool) -> Receipt:
        """Merges the profiles of a file in the store's format, or replaces all profiles by them."""


def read_profiles(path: Path) -> ProfileSet:
    """Reads and checks a file in the store's format. Raises: StoreError."""
    try:
        content = read_regular_file(path)
    except FileNotFoundError:
        raise StoreMissingError(f"{path} does not exist") from None
    except OSError as error:
        raise StoreFileError(f"cannot read {path}: {error.strerror}") from None
    return parse(content, source=str(path))


class FileTarget:
    """A store file, changed under its lock."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._store = WeightsStore(path)

    def read(self) -> ProfileSet:
        """See Target."""
        return self._store.read()

    def history(self) -> list[ProfileSet]:
        """See Target."""
        return self._store.history()

    def set_profile(
        self, name: str, preferences: Mapping[str, float], precondition: Precondition
    ) -> Receipt:
        """See Target."""
        return self._change(
            lambda current: edits.with_profile(current, name, preferences), precondition
        )

    def delete_profile(self, name: str, precondition: Precondition) -> Receipt:
        """See Target."""
        return self._change(lambda current: edits.without_profile(current, name), precondition)

    def set_default(self, name: str, precondition: Precondition) -> Receipt:
        """See Target."""
        return self._change(lambda current: edits.with_default(current, name), precondition)

    def rollback(self, version: int | None, precondition: Precondition) -> Receipt:
        """See Target."""
        return self._change(Rollback(self._store, version), precondition)

    def apply(self, file: Path, precondition: Precondition, *, replace: bool) -> Receipt:
        """See Target. A store that does not exist is created from the file."""
        other = read_profiles(file)
        edit = edits.replaced if replace else edits.merged
        if precondition.expected is None and not self._store.path.exists():
            first = other if precondition.dry_run else self._store.create(other)
            if precondition.dry_run or first.sha256 == other.sha256:
                return Receipt(None, 1, first.sha256, is_changed=True)
        return self._change(lambda current: edit(current, other, source=str(file)), precondition)

    def _change(self, edit: Edit, precondition: Precondition) -> Receipt:
        try:
            change = self._store.change(
                edit, expected=precondition.expected, dry_run=precondition.dry_run
            )
        except StoreMissingError as error:
            raise StoreMissingError(
                f"{error}; make it with 'prefmix weights apply FILE', or let 'prefmix serve "
                "--weights-store PATH' make it"
            ) from None
        return Receipt.of(change)


class ServerTarget:
    """A running server, changed by its admin routes."""

    def __init__(self, url: str, token: str) -> None:
        """Stores the address; sends nothing. Raises: ServerError for an impossible URL."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServerError(f"--url is {url!r}, expected one such as http://127.0.0.1:8000")
        self.name = url.rstrip("/")
        self._token = token
        # A redirect would carry the token to wherever it points.
        self._opener = urllib.request.build_opener(_NoRedirect)

    def read(self) -> ProfileSet:
        """See Target."""
        return self._profiles(self._ask("GET", "/admin/weights"))

    def history(self) -> list[ProfileSet]:
        """See Target."""
        versions = self._ask("GET", "/admin/weights/history").get("versions", [])
        return [self._profiles(entry) for entry in versions]

    def set_profile(
        self, name: str, preferences: Mapping[str, float], precondition: Precondition
    ) -> Receipt:
        """See Target."""
        body = {"weights": dict(preferences)}
        return self._change("PUT", f"/admin/profiles/{_quote(name)}", precondition, body)

    def delete_profile(self, name: str, precondition: Precondition) -> Receipt:
        """See Target."""
        return self._change("DELETE", f"/admin/profiles/{_quote(name)}", precondition)

    def set_default(self, name: str, precondition: Precondition) -> Receipt:
        """See Target."""
        return self._change("PUT", "/admin/default", precondition, {"profile": name})

    def rollback(self, version: int | None, precondition: Precondition) -> Receipt:
        """See Target."""
        body = {} if version is None else {"version": version}
        return self._change("POST", "/admin/weights/rollback", precondition, body)

    def apply(self, file: Path, precondition: Precondition, *, replace: bool) -> Receipt:
        """See Target. Either all of the file is applied or nothing."""
        body = document(read_profiles(file))
        query = {"replace": "true"} if replace else {}
        return self._change("POST", "/admin/weights/apply", precondition, body, **query)

    def _profiles(self, data: object) -> ProfileSet:
        if isinstance(data, dict):
            data = {key: value for key, value in data.items() if key != "sha256"}
        return from_document(data, source=f"the answer of {self.name}")

    def _change(
        self, method: str, path: str, precondition: Precondition, body: object = None, **query: str
    ) -> Receipt:
        if precondition.dry_run:
            query["dry_run"] = "true"
        answer = self._ask(
            method,
            path + ("?" + urllib.parse.urlencode(query) if query else ""),
            body,
            precondition,
        )
        try:
            return Receipt(
                int(answer["previous_version"]),
                int(answer["version"]),
                str(answer["sha256"]),
                bool(answer["changed"]),
                answer.get("set_aside"),
            )
        except (KeyError, TypeError, ValueError):
            raise ServerError(
                f"{self.name} gave no answer of a prefmix server; check --url"
            ) from None

    def _ask(
        self, method: str, path: str, body: object = None, precondition: Precondition | None = None
    ) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._token}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if precondition is not None and precondition.expected is not None:
            headers["If-Match"] = f'"{precondition.expected}"'
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.name + path, data=content, headers=headers, method=method
        )
        try:
            with self._opener.open(request, timeout=ANSWER_TIMEOUT_S) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            self._refused(error)
        except urllib.error.URLError as error:
            raise ServerError(f"cannot reach {self.name}: {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"lost {self.name}: {error or type(error).__name__}") from None
        except ValueError:
            raise ServerError(f"{self.name}{path} did not answer with JSON") from None
        if not isinstance(answer, dict):
            raise ServerError(f"{self.name}{path} did not answer with a JSON object")
        return answer

    def _refused(self, error: urllib.error.HTTPError) -> NoReturn:
        try:
            message = str(json.load(error)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            message = error.reason
        if error.code == 404 and "is not served here" in message:
            message += (
                "; the admin routes are off unless the server is started with PREFMIX_ADMIN_TOKEN, "
                "and with --admin-port they are on that port only"
            )
        raise ServerError(f"{self.name} refused ({error.code}): {message}") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _quote(name: str) -> str:
    return urllib.parse.quote(name, safe="")
