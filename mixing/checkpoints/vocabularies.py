"""Compares tokenizers and finds the vocabulary that the members of a mixture have in common.

Mixing adds up logits index by index, so a token can only be drawn if its index means the same to
every member. Tokens that were added to a trained vocabulary, such as `<pad>`, may be left out of
the mixture. A trained vocabulary cannot differ: each member would read another text.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from prefmix.mixing.spec import VocabularyRule
from prefmix.mixing.vocabulary import CommonVocabulary


class CompatibilityError(ValueError):
    """Models that cannot share one mixture, or a model that cannot be read."""


@dataclass(frozen=True, eq=False)
class MemberTokens:
    """The tokens of one member."""

    name: str
    tokenizer: Any
    """The tokenizer is of transformers."""
    num_rows: int
    """Rows of its embeddings and of its LM head."""

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each token."""
        vocabulary: dict[str, int] = self.tokenizer.get_vocab()
        return vocabulary

    @cached_property
    def tokens(self) -> dict[int, str]:
        """The token of each id."""
        return {index: token for token, index in self.ids.items()}

    @cached_property
    def highest(self) -> int:
        """The highest id."""
        return max(self.ids.values())

    def is_added(self, index: int) -> bool:
        """True if there is no token of this id, or one that was added to the trained ones."""
        return index not in self.tokens or self.tokens[index] in self._added

    @cached_property
    def _added(self) -> Collection[str]:
        added: Collection[str] = self.tokenizer.get_added_vocab()
        return added

    @property
    def rules(self) -> dict[str, str]:
        """Rules that split text, as JSON by section; empty if there is no Rust backend."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return {}
        state = json.loads(backend.to_str())
        rules = {section: state[section] for section in ("normalizer", "pre_tokenizer", "decoder")}
        rules["merges"] = state["model"].get("merges")
        rules["kind"] = state["model"].get("type")
        return {section: json.dumps(rule, ensure_ascii=False) for section, rule in rules.items()}


def common_vocabulary(members: Sequence[MemberTokens], rule: VocabularyRule) -> CommonVocabulary:
    """The vocabulary in which a mixture's tokens are drawn.

    Args:
      members: the first one's name comes first in messages.
      rule: how far they may differ.
    Raises: CompatibilityError naming both members and the first difference.
    """
    for member in members:
        _check_rows(member, rule)
    first, *others = members
    end = min(member.highest for member in members)
    differing: set[int] = set()
    for other in others:
        found = [index for index, _, _ in differences(first, other)]
        _check_difference(first, other, found, rule, end=end)
        differing |= set(found)
    num_rows = min(member.num_rows for member in members)
    known = max(max(member.num_rows, member.highest + 1) for member in members)
    unlike = frozenset(index for index in differing if index < num_rows)
    return CommonVocabulary(
        num_rows=num_rows, differing=unlike, num_never_drawn=known - num_rows + len(unlike)
    )


def differences(one: MemberTokens, other: MemberTokens) -> Iterator[tuple[int, str, str]]:
    """Yields (id, the one's token, the other's token) for each id of which they differ."""
    if one.ids == other.ids:
        return
    for index in sorted({index for _, index in one.ids.items() ^ other.ids.items()}):
        token, token_other = one.tokens.get(index), other.tokens.get(index)
        if token != token_other:
            yield index, shown(token), shown(token_other)


def shown(token: object) -> str:
    """A token as messages show it."""
    return "none" if token is None else f"{token!r:.40}"


def cannot_mix(
    one: MemberTokens, other: MemberTokens, what: str, ours: str, theirs: str, *, remedy: str
) -> CompatibilityError:
    """The refusal of two members, whose `what` differ."""
    return CompatibilityError(
        f"policies {one.name!r} and {other.name!r} cannot be mixed: their {what} differ "
        f"({one.name}: {ours}; {other.name}: {theirs}). A mixture adds up logits token by token; "
        f"{remedy}"
    )


_ONE_BASE = "use models that were trained from one base with one tokenizer"


def _check_rows(member: MemberTokens, rule: VocabularyRule) -> None:
    """Refuses tokens without a row; added ones may be left out, which are then never drawn."""
    if member.highest < member.num_rows:
        return
    index = member.highest
    if rule != "same":
        beyond = (each for each in sorted(member.tokens) if each >= member.num_rows)
        trained = next((each for each in beyond if not member.is_added(each)), None)
        if trained is None:
            return
        index = trained
    raise CompatibilityError(
        f"policy {member.name!r}: its tokenizer has token {shown(member.tokens[index])} at index "
        f"{index}, but the model's vocabulary ends at {member.num_rows - 1}; the tokenizer belongs "
        "to another model"
    )


def _check_difference(
    one: MemberTokens,
    other: MemberTokens,
    differing: Sequence[int],
    rule: VocabularyRule,
    *,
    end: int,
) -> None:
    """Refuses two members whose tokenizers differ by more than the rule allows.

    Args:
      differing: the ids, in order.
      end: the last id of the shortest vocabulary of all members.
    """
    if not differing:
        return
    trained = [each for each in differing if not (one.is_added(each) and other.is_added(each))]
    middle = [each for each in differing if each <= end]
    remedy = "give --vocabulary common to leave out the added tokens that they do not share"
    if trained:
        refused, remedy = trained, _ONE_BASE
    elif rule == "common" or (rule == "prefix" and not middle):
        return
    else:
        refused = middle if rule == "prefix" else list(differing)
        if rule == "same" and not middle:
            remedy = remedy.replace("common", "prefix")
    index = refused[0]
    ours, theirs = (shown(each.tokens.get(index)) for each in (one, other))
    raise cannot_mix(one, other, f"vocabularies, at index {index},", ours, theirs, remedy=remedy)


def check_rules(one: MemberTokens, other: MemberTokens) -> None:
    """Refuses tokenizers that split one text in two ways. Raises: CompatibilityError."""
    ours, theirs = one.rules, other.rules
    for section in sorted(ours.keys() | theirs.keys()):
        rule, rule_other = ours.get(section), theirs.get(section)
        if rule != rule_other:
            what = f"tokenizers' {section} rules"
            raise cannot_mix(one, other, what, f"{rule:.80}", f"{rule_other:.80}", remedy=_ONE_BASE)
