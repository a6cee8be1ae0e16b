"""The console's settings: made by the launcher, read in every API process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CONSOLE_ATTRIBUTE = "prefmix_console"
"""The attribute of vLLM's parsed arguments in which `prefmix serve` passes the ConsoleSettings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsoleSettings:
    """The launcher's settings of the console; they do not change after the start."""

    is_on: bool
    prompt: str | None = None
    """Text that the page's prompt begins with."""
    has_chat_template: bool = True
    """False if the tokenizer in use knows no conversations; such models complete a text."""
    reports: Path | None = None
    """Folder of the reports of `prefmix fit` and `prefmix eval`; they may be written later."""
    has_admin: bool = False
    """True if the admin routes are on the console's own port."""
