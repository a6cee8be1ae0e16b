"""Settings of the policies' own prompts; set by the launcher, read in every API process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prefmix.server.config.errors import ConfigError

PROMPTS_ATTRIBUTE = "prefmix_prompts"
"""Name of the PromptSettings on vLLM's parsed arguments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSettings:
    """The prompts that policies have, and that requests may give them."""

    systems: Mapping[str, str] = field(default_factory=dict, repr=False)
    """System message by policy, of those that have one. No log, metric or answer shows it."""
    request_prompts: bool = False
    """True if requests may give policies prompts of their own."""
    max_own_tokens: int | None = None
    """Most tokens of the prompts of a request's policies together; None: eight longest contexts."""

    @property
    def are_on(self) -> bool:
        """True if the engine must give policies prompts of their own."""
        return bool(self.systems) or self.request_prompts

    @property
    def sha256(self) -> str | None:
        """Hash of names and texts, by which profiles made with them are known; None if no policy
        has a text."""
        if not self.systems:
            return None
        canonical = json.dumps(dict(self.systems), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def systems_from_flags(items: Sequence[str]) -> dict[str, str]:
    """Reads `--system NAME=TEXT` or `NAME=@FILE` flags into texts by policy.

    A file is UTF-8 and counts without its last line end.
    Raises: ConfigError for an item without "=", a name given twice or a file that cannot be read.
    """
    texts: dict[str, str] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not (name and equals and text):
            raise ConfigError(
                f"--system is {item!r:.40}; expected NAME=TEXT or NAME=@FILE, such as "
                "brief='You answer in one sentence.'"
            )
        if name in texts:
            raise ConfigError(f"--system names {name!r:.80} twice; give each policy one text")
        texts[name] = _read(name, text[1:]) if text.startswith("@") else text
    return texts


def _read(name: str, path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().removesuffix("\n")
    except UnicodeDecodeError:
        raise ConfigError(f"--system {name}: {path} is not a text file in UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--system {name}: cannot read {path}: {reason}") from None
