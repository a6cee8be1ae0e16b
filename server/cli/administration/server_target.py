"""A running server as the target of a command, by its admin routes."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from prefmix.mixing.ways_to_mix import Mixing
from prefmix.server.cli.administration.targets import Precondition, Receipt, read_profiles
from prefmix.weights.engines.proxies import may_use_proxy
from prefmix.weights.store.format import document, from_document
from prefmix.weights.store.profiles import ProfileSet

ANSWER_TIMEOUT_S = 30.0
"""Longest wait for a server's answer."""

POLICIES_TIMEOUT_S = 600.0
"""The same where the server may read adapters, which can be large, and wait for its requests."""


class ServerError(ValueError):
    """A server that refused or could not be reached. One sentence."""


class ServerTarget:
    """A running server, changed by its admin routes."""

    def __init__(self, url: str, token: str) -> None:
        """Stores the address; sends nothing. Raises: ServerError for an impossible URL."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServerError(f"--url is {url!r}, expected one such as http://127.0.0.1:8000")
        self.name = url.rstrip("/")
        self._token = token
        self._timeout_s = ANSWER_TIMEOUT_S
        # A redirect would carry the token to wherever it points, a proxy would read it.
        proxies: dict[str, str] | None = None if may_use_proxy(url) else {}
        self._opener = urllib.request.build_opener(
            _NoRedirect, urllib.request.ProxyHandler(proxies)
        )

    def read(self) -> ProfileSet:
        """See Target."""
        return self._profiles(self._ask("GET", "/admin/weights"))

    def history(self) -> list[ProfileSet]:
        """See Target."""
        versions = self._ask("GET", "/admin/weights/history").get("versions", [])
        return [self._profiles(entry) for entry in versions]

    def set_profile(
        self,
        name: str,
        preferences: Mapping[str, float],
        precondition: Precondition,
        *,
        mixing: Mixing | None = None,
    ) -> Receipt:
        """See Target."""
        body: dict[str, Any] = {"weights": dict(preferences)}
        if mixing is not None:
            body["mixing"] = mixing
        return self._change("PUT", f"/admin/profiles/{_quote(name)}", precondition, body)

    def delete_profile(self, name: str, precondition: Precondition) -> Receipt:
        """See Target."""
        return self._change("DELETE", f"/admin/profiles/{_quote(name)}", precondition)

    def set_default(self, name: str, precondition: Precondition) -> Receipt:
        """See Target."""
        return self._change("PUT", "/admin/default", precondition, {"profile": name})

    def rollback(
        self, version: int | None, precondition: Precondition, *, drain: bool = False
    ) -> Receipt:
        """See Target."""
        body = {} if version is None else {"version": version}
        self._timeout_s = POLICIES_TIMEOUT_S
        query = _drained(drain)
        return self._change("POST", "/admin/weights/rollback", precondition, body, **query)

    def apply(
        self,
        file: Path,
        precondition: Precondition,
        *,
        replace: bool = False,
        with_its_default: bool = False,
    ) -> Receipt:
        """See Target. Either all of the file is applied or nothing."""
        body = document(read_profiles(file))
        body.pop("changed", None)  # the server signs its own versions
        chosen = {"replace": replace, "default": with_its_default}
        query = {name: "true" for name, is_chosen in chosen.items() if is_chosen}
        return self._change("POST", "/admin/weights/apply", precondition, body, **query)

    def policies(self) -> dict[str, Any]:
        """The answer of `GET /admin/policies`."""
        found = self._ask("GET", "/admin/policies")
        if not {"version", "slots", "policies"} <= found.keys():
            raise ServerError(f"{self.name} gave no answer of a prefmix server; check --url")
        return found

    def add_policy(
        self,
        name: str,
        precondition: Precondition,
        *,
        adapter: str | None,
        system: str | None,
        without_kv: bool = False,
        drain: bool = False,
    ) -> Receipt:
        """Adds a policy, or replaces one that was added.

        Args:
          adapter: a folder below the server's folder of policies; None for the base itself.
          system: the system text that it alone reads; None for none.
          without_kv: true takes a slot without KV cache.
          drain: waits for requests under way if the policy's own slot alone is left.
        """
        given = {"adapter": adapter, "system": system, "kv_cache": False if without_kv else None}
        body = {key: value for key, value in given.items() if value is not None}
        self._timeout_s = POLICIES_TIMEOUT_S
        path = f"/admin/policies/{_quote(name)}"
        return self._change("PUT", path, precondition, body, **_drained(drain))

    def remove_policy(self, name: str, precondition: Precondition, *, drain: bool) -> Receipt:
        """Removes a policy that was added. Args: drain: also if requests under way use it."""
        path = f"/admin/policies/{_quote(name)}"
        return self._change("DELETE", path, precondition, **_drained(drain))

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
                dict(answer.get("lost_mixings", {})),
                dict(answer.get("dormant", {})),
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
            with self._opener.open(request, timeout=self._timeout_s) as response:
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
            message = str(error.reason)
            if 300 <= error.code < 400:
                message = "it redirects elsewhere, and the token is not sent there; check --url"
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


def _drained(drain: bool) -> dict[str, str]:
    """The query that waits for requests under way."""
    return {"drain": "true"} if drain else {}
