"""Instructions that the instructed demo policy has learned to follow, and what obeys each of them.

An instruction is a sentence of a system message; several may stand one after the other. Notes are
facts about the item, such as "Notes: the bed was lumpy."
"""

from collections.abc import Callable
from dataclasses import dataclass

from prefmix.policies.demo.reviews.grammar import Review

LONG_SENTENCES = 4
"""Number of sentences from which on a review counts as long."""
BRIEF_SENTENCES = 2
"""Number of sentences up to which a review counts as brief."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """One kind of instruction."""

    wordings: tuple[str, ...]
    """Sentences that ask for it."""
    is_obeyed_by: Callable[[Review], bool]


STYLES: dict[str, Style] = {
    "casual": Style(
        wordings=("Write casually.", "Be casual."),
        is_obeyed_by=lambda review: review.register == "casual",
    ),
    "plain": Style(
        wordings=("Write plainly.", "Use plain words."),
        is_obeyed_by=lambda review: review.register == "plain",
    ),
    "polite": Style(
        wordings=("Write politely.", "Be polite."),
        is_obeyed_by=lambda review: review.register == "formal",
    ),
    "positive": Style(
        wordings=("Praise it.", "Be positive."),
        is_obeyed_by=lambda review: review.level > 0,
    ),
    "negative": Style(
        wordings=("Find fault with it.", "Be negative."),
        is_obeyed_by=lambda review: review.level < 0,
    ),
    "brief": Style(
        wordings=("Be brief.", "Keep it short."),
        is_obeyed_by=lambda review: review.num_sentences <= BRIEF_SENTENCES,
    ),
    "long": Style(
        wordings=("Write at length.", "Go into detail."),
        is_obeyed_by=lambda review: review.num_sentences >= LONG_SENTENCES,
    ),
}
"""Name of a style -> its instruction."""


def notes(findings: tuple[tuple[str, str], ...]) -> str:
    """A note of findings, (aspect, adjective) each, as a sentence of a system message."""
    return "Notes: " + ", ".join(f"the {aspect} was {word}" for aspect, word in findings) + "."
