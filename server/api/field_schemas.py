"""The JSON schemas of this server's fields on the OpenAPI page; pydantic takes any JSON there."""

from __future__ import annotations

from typing import Any

from prefmix.mixing.ways_to_mix import MIXINGS

WEIGHTS_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "object", "additionalProperties": {"type": "number"}, "minProperties": 1},
        {"type": "null"},
    ],
    "title": "Preference Weights",
}
ATTRIBUTION_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "boolean"}, {"const": "tokens"}, {"type": "null"}],
    "title": "Preference Attribution",
}
MIXING_SCHEMA: dict[str, Any] = {
    "anyOf": [{"enum": list(MIXINGS), "type": "string"}, {"type": "null"}],
    "title": "Preference Mixing",
}
CANDIDATES_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}],
    "title": "Preference Candidates",
}
_PROMPT = [
    {"type": "string"},
    {"type": "array", "items": {"type": "integer", "minimum": 0}},
    {
        "type": "object",
        "properties": {"messages": {"type": "array", "items": {"type": "object"}}},
        "required": ["messages"],
        "additionalProperties": False,
    },
]
PROMPTS_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "object", "additionalProperties": {"anyOf": _PROMPT}, "minProperties": 1},
        {"type": "null"},
    ],
    "title": "Preference Prompts",
}
NEGATIVE_SCHEMA: dict[str, Any] = {
    "anyOf": [*_PROMPT, {"type": "null"}],
    "title": "Negative Prompt",
}
GUIDANCE_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "number"}, {"type": "null"}],
    "title": "Guidance Scale",
}
PROFILE_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "string"}, {"type": "null"}],
    "title": "Preference Profile",
}
