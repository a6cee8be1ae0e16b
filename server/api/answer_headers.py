"""The headers of an answer: which weights were used, and the request's id."""

from __future__ import annotations

from typing import Any

from prefmix.server.api.resolve import Resolution

PROFILE_HEADER = "x-prefmix-profile"
WEIGHTS_HEADER = "x-prefmix-weights"
VERSION_HEADER = "x-prefmix-weights-version"
MIXING_HEADER = "x-prefmix-mixing"
ESS_HEADER = "x-prefmix-ess"
REQUEST_ID_HEADER = "x-request-id"
IGNORED_HEADER = "x-prefmix-ignored-fields"

HEADER_DESCRIPTIONS: dict[str, dict[str, Any]] = {
    PROFILE_HEADER: {
        "description": "The profile the weights came from, or custom.",
        "schema": {"type": "string"},
    },
    WEIGHTS_HEADER: {
        "description": "The weights used, such as helpful=0.75,harmless=0.25.",
        "schema": {"type": "string"},
    },
    VERSION_HEADER: {
        "description": "Version of the profiles in force at admission.",
        "schema": {"type": "integer"},
    },
    MIXING_HEADER: {
        "description": "The way in which the policies were mixed: logits or parameters.",
        "schema": {"type": "string"},
    },
    ESS_HEADER: {
        "description": "The effective number of candidates, the smallest of the answers.",
        "schema": {"type": "number"},
    },
    REQUEST_ID_HEADER: {
        "description": "The id that came with the request, or a new one.",
        "schema": {"type": "string"},
    },
    IGNORED_HEADER: {
        "description": "Fields of the body that this server does not know and ignores, if any.",
        "schema": {"type": "string"},
    },
}
"""The same headers as the OpenAPI page describes them."""


def answer_headers(
    resolution: Resolution, request_id: str, ignored_fields: str | None = None
) -> dict[str, str]:
    """The headers of one answer. Nine digits of a weight are more than a float32 holds."""
    pairs = zip(resolution.member_names, resolution.weights, strict=True)
    headers = {
        PROFILE_HEADER: resolution.profile,
        WEIGHTS_HEADER: ",".join(f"{name}={weight:.9g}" for name, weight in pairs),
        VERSION_HEADER: str(resolution.version),
        MIXING_HEADER: resolution.mixing,
        REQUEST_ID_HEADER: request_id,
    }
    if ignored_fields is not None:
        headers[IGNORED_HEADER] = ignored_fields
    return headers
