"""Limits on structured outputs: the size of a constraint, the priority of its compilation.

A regular expression of 100 KB takes the engine minutes and gigabytes to compile, and one of 1 MB
stops the process that only checks it. So constraints have a size. Within it, compilation may still
take seconds of every core that is idle, and no library can end it; so its threads get what the
engine's steps leave.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

MAX_REGEX_CHARS = 2**11
"""Longest regular expression, and most characters of all patterns in a schema together."""

MAX_GRAMMAR_CHARS = 2**13
MAX_SCHEMA_CHARS = 2**17
MAX_CHOICE_CHARS = 2**16
MAX_PROPERTIES = 2**11
"""Most properties of all objects in a schema."""

MAX_REPETITIONS = 10_000
"""Largest number of repetitions: some compilers keep room for each item of a list."""

MAX_ALL_REPETITIONS = 100_000
"""Largest sum of the numbers of items and properties that a schema names."""

_LOWEST_PRIORITY = 19
_REPEATED = re.compile(r"\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}")
_COUNTS = frozenset(
    f"{end}{what}" for end in ("min", "max") for what in ("Items", "Properties", "Contains")
)
_EMBEDDED_SCHEMA = "%json"
_DECODER = json.JSONDecoder()
_PATTERNS = ("pattern", "regex", "patternProperties")


def check_grammar(params: SamplingParams) -> None:
    """Checks the constraint of one request, before vLLM looks at it.

    Raises: VLLMValidationError naming field and limit; over HTTP a 400.
    """
    found = params.structured_outputs
    if found is None:
        return
    _refuse_above(MAX_REGEX_CHARS, found.regex, "regex")
    _refuse_above(MAX_GRAMMAR_CHARS, found.grammar, "grammar")
    _check_repetitions(found.regex or "", "regex")
    _check_text(found.grammar or "", "grammar")
    if found.choice:
        _refuse_above(MAX_CHOICE_CHARS, "".join(map(str, found.choice)), "choice")
    for field, value in (("json", found.json), ("structural_tag", found.structural_tag)):
        if isinstance(value, str):
            _refuse_above(MAX_SCHEMA_CHARS, value, field)
            try:
                value = json.loads(value)
            except ValueError:
                continue  # vLLM says so
        _check_schema(value, field)
        if field == "json" and isinstance(value, dict):
            _refuse_outlines(value)


def lower_priority(manager: Any) -> None:
    """Gives the threads that compile constraints the lowest priority.

    Args: manager: vLLM's StructuredOutputManager, before its first request.
    """
    executor = getattr(manager, "executor", None)
    if executor is not None:  # there is none without a tokenizer
        # A thread's priority is that of the threads it starts, such as the compiler's own.
        manager.executor = ThreadPoolExecutor(executor._max_workers, initializer=_step_back)
        executor.shutdown()


def _step_back() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)


def _check_schema(schema: Any, field: str) -> int:
    """Checks a schema or a structural tag. Returns: the sum of its repetitions."""
    num_repetitions = 0
    num_chars = num_pattern_chars = num_grammar_chars = num_properties = 0
    pending = [("", schema)]
    while pending:
        under, value = pending.pop()
        if isinstance(value, dict):
            if under == "properties":
                num_properties += len(value)
            num_chars += sum(len(str(name)) + 4 for name in value)
            if under == "patternProperties":
                num_pattern_chars += sum(map(len, value))
                for name in value:
                    _check_repetitions(name, field)
            pending += value.items()
        elif isinstance(value, list):
            pending += [("", each) for each in value]
            num_chars += len(value)
        elif isinstance(value, str):
            num_chars += len(value) + 2
            if under in _PATTERNS:
                num_pattern_chars += len(value)
                _check_repetitions(value, field)
            if under == "grammar":
                num_grammar_chars += len(value)
                num_repetitions += _check_text(value[:MAX_GRAMMAR_CHARS], field)
        elif isinstance(value, int | float) and under in _COUNTS and value == value:
            _refuse_number(MAX_REPETITIONS, value, field, "repetitions")
            num_repetitions += int(value) if value > 0 else 0
        _refuse_number(MAX_ALL_REPETITIONS, num_repetitions, field, "repetitions in all")
        _refuse_number(MAX_SCHEMA_CHARS, num_chars, field, "characters")
        _refuse_number(MAX_REGEX_CHARS, num_pattern_chars, field, "characters of patterns")
        _refuse_number(MAX_GRAMMAR_CHARS, num_grammar_chars, field, "characters of grammars")
        _refuse_number(MAX_PROPERTIES, num_properties, field, "properties")
    return num_repetitions


def _refuse_outlines(schema: dict[str, Any]) -> None:
    """Refuses what vLLM 0.32 leaves to Outlines, because its other compilers do not take it.

    Outlines writes a schema out as one regular expression, which doubles with every level, and then
    as a table of all its states: a schema of 100 bytes takes gigabytes.
    """
    import xgrammar
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.structured_output.backend_guidance import has_guidance_unsupported_json_features
    from vllm.v1.structured_output.backend_xgrammar import has_xgrammar_unsupported_json_features

    if not has_guidance_unsupported_json_features(schema):
        return
    if not has_xgrammar_unsupported_json_features(schema):
        with contextlib.suppress(RuntimeError, ValueError, TypeError):
            xgrammar.Grammar.from_json_schema(schema)
            return
    raise VLLMValidationError(
        "the structured output's json has patternProperties in a schema that needs another "
        "compiler: leave them out, or what stands beside them (properties, propertyNames, "
        "multipleOf, uniqueItems, contains)",
        parameter="structured_outputs",
    )


def _check_text(grammar: str, field: str) -> int:
    """Checks a grammar, and the schemas that Lark's dialect of llguidance has inside (`%json`).

    There 10^7 items take gigabytes, and what fails to get them ends the process that only checks.

    Returns: the sum of their repetitions.
    """
    num_repetitions = 0
    _check_repetitions(grammar, field)
    at = grammar.find("{") if _EMBEDDED_SCHEMA in grammar else -1
    while at >= 0:
        end = at + 1
        with contextlib.suppress(ValueError, RecursionError):  # no schema
            schema, end = _DECODER.raw_decode(grammar, at)
            num_repetitions += _check_schema(schema, field)
        _refuse_number(MAX_ALL_REPETITIONS, num_repetitions, field, "repetitions in all")
        at = grammar.find("{", end)
    return num_repetitions


def _check_repetitions(text: str, field: str) -> None:
    for match in _REPEATED.finditer(text[:MAX_GRAMMAR_CHARS]):
        for number in match.groups():
            digits = (number or "").lstrip("0")
            found = int(digits[:9] or 0)  # more digits are more than enough
            _refuse_number(MAX_REPETITIONS, found, field, "repetitions")


def _refuse_above(limit: int, text: str | None, field: str) -> None:
    _refuse_number(limit, len(text or ""), field, "characters")


def _refuse_number(limit: int, found: float, field: str, what: str) -> None:
    from vllm.exceptions import VLLMValidationError

    if found > limit:
        raise VLLMValidationError(
            f"the structured output's {field} has more than {limit} {what}, the most that this "
            "server compiles",
            parameter="structured_outputs",
        )
