"""The one sentence that says why a server failed, and what to do about it."""

from __future__ import annotations

_MAX_CAUSE_CHARS = 1000

_KV_CACHE = (
    "a mixture keeps a KV cache for each policy: give them more with -- --kv-cache-memory-bytes N, "
    "or need less with -- --max-model-len N"
)
_REMEDIES = {
    "No available memory for the cache blocks": _KV_CACHE,
    "KV cache is needed, which is larger than the available KV cache memory": _KV_CACHE,
}
"""Part of a sentence of vLLM 0.32 -> our advice, where vLLM's own does not fit a mixture."""


def failure_message(what: str, error: Exception, *, logged_cause: str | None) -> str:
    """`what`, the cause and, if known, the remedy, as one line.

    Args:
      what: the beginning of the sentence.
      error: the exception that ended the server.
      logged_cause: what another process logged before; None if nothing.
    """
    # A RuntimeError of vLLM only says that another process failed.
    first = logged_cause if isinstance(error, RuntimeError) else None
    return _with_remedy(f"{what}: {first or describe(error)}")


def describe(error: Exception) -> str:
    """An exception as one line; of pydantic's many errors the first."""
    errors = getattr(error, "errors", None)
    if callable(errors) and (details := errors()):
        text = str(details[0].get("msg", error)).removeprefix("Value error, ")
    else:
        text = str(error) or type(error).__name__
    line = " ".join(text.split())
    return line if len(line) <= _MAX_CAUSE_CHARS else line[:_MAX_CAUSE_CHARS] + "..."


def _with_remedy(message: str) -> str:
    """The message with our advice in place of vLLM's; unchanged if we have none."""
    for part, remedy in _REMEDIES.items():
        if part in message:
            return f"{message[: message.index(part) + len(part)]}; {remedy}"
    return message
