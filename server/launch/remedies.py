"""What to do about failures of vLLM whose own advice does not fit a mixture."""

from __future__ import annotations

_KV_CACHE = (
    "a mixture keeps a KV cache for each policy: give them more with -- --kv-cache-memory-bytes N, "
    "or need less with -- --max-model-len N"
)
_REMEDIES = {
    "No available memory for the cache blocks": _KV_CACHE,
    "KV cache is needed, which is larger than the available KV cache memory": _KV_CACHE,
}
"""By a part of vLLM 0.32's sentence."""


def with_remedy(message: str) -> str:
    """The message, ended where vLLM's advice begins, with ours; unchanged if we have none."""
    for part, remedy in _REMEDIES.items():
        if part in message:
            return f"{message[: message.index(part) + len(part)]}; {remedy}"
    return message
