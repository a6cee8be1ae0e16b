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
    has_chat_template: bool = True
    """False if no chat template would carry a text."""

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

    def refusal(self, *, logs_requests: bool) -> str | None:
        """A sentence if texts would reach no policy, or a log; None if all is well.

        Args: logs_requests: vLLM's flag --enable-log-requests.
        """
        if not self.systems:
            return None
        if not self.has_chat_template:
            return (
                f"policy {next(iter(self.systems))!r} has a system text, but its tokenizer has no "
                "chat template that would carry it; give one (-- --chat-template FILE), or leave "
                "the text out"
            )
        if logs_requests:
            return (
                "vLLM's flag --enable-log-requests would write the policies' system texts into the "
                "log; leave it out (--request-log writes lines without texts)"
            )
        return None


ONE_PROMPT = (
    "mixing is parameters, which is one model that reads one prompt, but policies have prompts of "
    "their own (system); leave the prompts out, or mix logits"
)
"""The refusal of texts where averages of parameters are the default."""


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
        texts[name] = text_or_file(text, f"--system {name}")
    return texts


def text_or_file(text: str, where: str) -> str:
    """A text, or for `@FILE` that of a file in UTF-8 without its last line end.

    Raises: ConfigError for a file that cannot be read.
    """
    if not text.startswith("@"):
        return text
    path = text[1:]
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().removesuffix("\n")
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: {path} is not a text file in UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{where}: cannot read {path}: {reason}") from None
