"""Checks that models can be mixed: they must agree on the tokens that are drawn.

Mixing adds up logits index by index, so index v must mean the same token to every member. Harmless
differences (depth, width, heads, architecture, padding of the vocabulary) are allowed, added tokens
that only some members have are left out (prefmix.mixing.checkpoints.vocabularies), and settings
such as end tokens are taken from one member. Differences that would give silently wrong answers are
refused, with the first one found.
"""

from __future__ import annotations

import filecmp
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefmix.mixing.checkpoints.file_names import TOKENIZER
from prefmix.mixing.checkpoints.hub import fetched_folder, first_line
from prefmix.mixing.checkpoints.lora import AdapterError, read_adapter
from prefmix.mixing.checkpoints.stamps import Stamps, stamps_of
from prefmix.mixing.checkpoints.text_files import (
    TextFiles,
    default_files,
    read_adapters_own,
    read_checkpoint,
)
from prefmix.mixing.checkpoints.tokenizer_json import TokenizerJson
from prefmix.mixing.checkpoints.vocabularies import (
    CompatibilityError,
    MemberTokens,
    check_rules,
    common_vocabulary,
    differences,
    shown,
)
from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.mixing.vocabulary import CommonVocabulary

__all__ = ["CheckedMembers", "CompatibilityError", "check_added_adapter", "check_members"]


@dataclass(frozen=True, kw_only=True)
class CheckedMembers:
    """The members of a mixture, found to fit together."""

    warnings: tuple[str, ...]
    """Sentences worth showing."""
    vocabulary: CommonVocabulary
    left_out: tuple[str, ...]
    """The tokens of some members that are never drawn, in the order of their ids."""
    has_chat_template: bool
    """True if the tokenizer in use turns conversations into prompts."""

    @property
    def vocabulary_note(self) -> str | None:
        """A sentence about the ids that are never drawn; None if there are none."""
        number = self.vocabulary.num_never_drawn
        if not number:
            return None
        named = ", ".join(self.left_out[:3]) + (", ..." if len(self.left_out) > 3 else "")
        examples = f" ({named})" if named else ""
        return (
            f"vocabulary: {self.vocabulary.size} token ids are common to all policies; {number} "
            f"that only some have{examples} are never drawn"
        )


def check_members(spec: MixtureSpec, *, trust_remote_code: bool = False) -> CheckedMembers:
    """Checks that all members of a mixture agree on every token that is drawn.

    Args:
      spec: the mixture.
      trust_remote_code: passed on to transformers.
    Raises: CompatibilityError naming both policies and the first difference.
    """
    folders = (Path(each.model).expanduser() for each in (*spec.checkpoints, *spec.adapters))
    return _checked(spec, trust_remote_code, tuple(map(stamps_of, folders)))


def check_added_adapter(adapter: Policy, base: Policy) -> str | None:
    """Refuses an adapter for a running base that was trained on other tokens than the base has.

    Trainers save the tokenizer beside an adapter, which tells adapters of another base apart whose
    layers have the same shapes. The vocabulary and settings of the running server stay as they are.

    Args:
      adapter: its `model` is a folder.
    Returns: a sentence about a tokenizer that cannot be read; None for one that fits, or for none.
    Raises: CompatibilityError naming the first token.
    """
    own = Path(adapter.model) / TOKENIZER
    if not own.is_file():
        return None
    holds = fetched_folder(base, holds=TOKENIZER, refuse=CompatibilityError, patterns=(TOKENIZER,))
    try:
        if filecmp.cmp(own, holds / TOKENIZER, shallow=False):
            return None
        first, other = TokenizerJson(holds / TOKENIZER), TokenizerJson(own)
    except (OSError, ValueError, RecursionError) as error:
        return (
            f"policy {adapter.name!r}: the tokenizer beside the adapter, or the base's, cannot be "
            f"read ({first_line(error)}), so their tokens are not compared"
        )
    num_rows = max(first.get_vocab().values()) + 1
    pair = [MemberTokens(base.name, first, num_rows), MemberTokens(adapter.name, other, num_rows)]
    common_vocabulary(pair, "common")
    return None


@functools.lru_cache(maxsize=8)
def _checked(
    spec: MixtureSpec, trust_remote_code: bool, stamps: tuple[Stamps, ...]
) -> CheckedMembers:
    """`check_members` of files that are kept apart from later ones by their stamps."""
    try:
        for adapter in spec.adapters:
            read_adapter(adapter)
        default_files(spec)
    except AdapterError as error:
        raise CompatibilityError(str(error)) from error
    found = {member: read_checkpoint(member, trust_remote_code) for member in spec.checkpoints}
    warnings: list[str] = []
    for adapter in spec.adapters:
        try:
            own = read_adapters_own(adapter, found[spec.checkpoints[0]])
        except CompatibilityError as error:
            if adapter == spec.defaults:
                raise CompatibilityError(
                    f"policy {adapter.name!r}: the tokenizer beside the adapter cannot be read "
                    f"({error}); save it again, or leave defaults_from out"
                ) from error
            warnings.append(
                f"policy {adapter.name!r}: the tokenizer beside the adapter cannot be read "
                f"({first_line(error)}); that of {spec.defaults.name!r} is used"
            )
        else:
            found |= {} if own is None else {adapter: own}
    members, chosen = list(found.values()), found[spec.defaults]
    vocabulary = common_vocabulary([member.tokens for member in members], spec.vocabulary)
    for other in members[1 : len(spec.checkpoints)]:
        check_rules(members[0].tokens, other.tokens)
    for member in members:
        if member is not chosen:
            warnings.extend(_choices(chosen, member))
    warnings.extend(_lost_to(chosen, vocabulary))
    warnings.extend(
        f"policy {adapter.name!r}: every lora_B of its adapter is zero, so it answers as the base "
        "does"
        for adapter in spec.adapters
        if read_adapter(adapter).is_zero
    )
    warnings.extend(
        f"policy {adapter.name!r}: its adapter_config.json has entries that prefmix does not know "
        f"({', '.join(unknown)}); they are left out, as PEFT does"
        for adapter in spec.adapters
        if (unknown := read_adapter(adapter).unknown)
    )
    return CheckedMembers(
        warnings=tuple(warnings),
        vocabulary=vocabulary,
        left_out=_left_out(members, vocabulary),
        has_chat_template=chosen.tokenizer.chat_template is not None,
    )


def _choices(chosen: TextFiles, other: TextFiles) -> Iterator[str]:
    """A warning for each setting in which two members differ and the chosen one's is used."""
    both = f"policies {chosen.name!r} and {other.name!r}"
    used = f"those of {chosen.name!r} are used"
    if other.tokenizer.chat_template != chosen.tokenizer.chat_template:
        yield (
            f"{both} have different chat templates; that of {chosen.name!r} is used for all, "
            "choose another with --defaults-from NAME or --chat-template FILE"
        )
    if other.end_token_ids != chosen.end_token_ids:
        yield (
            f"{both} end a text with different tokens "
            f"({chosen.end_token_ids} and {other.end_token_ids}); {used}, choose others with "
            "--defaults-from NAME or add them with stop_token_ids in the request"
        )
    for what, ours, theirs in (
        ("special tokens", chosen.special_tokens, other.special_tokens),
        ("defaults of generation", chosen.generation_defaults, other.generation_defaults),
    ):
        names = sorted(
            name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
        )
        if names:
            pairs = ", ".join(
                f"{name} {shown(ours.get(name))} and {shown(theirs.get(name))}" for name in names
            )
            yield f"{both} have different {what} ({pairs}); {used}"
    if other.surroundings != chosen.surroundings:
        yield f"{both} put different special tokens around a text; {used}"
    for index, token, token_other in differences(chosen.tokens, other.tokens):
        yield (
            f"{both} have different tokenizers (at index {index}: {token} and {token_other}); that "
            f"of {chosen.name!r} is used"
        )
        break


def _lost_to(chosen: TextFiles, vocabulary: CommonVocabulary) -> Iterator[str]:
    """A warning for what the chosen files use although it is not in the common vocabulary.

    Raises: CompatibilityError if every prompt would be refused, or no answer would end.
    """
    tokens = chosen.tokens.tokens
    if not vocabulary.without(tokens):
        return
    elsewhere = "take it from another policy with --defaults-from NAME"
    wrong = f"policy {chosen.name!r} gives tokenizer and end tokens, but "
    ends = {*chosen.end_token_ids, chosen.tokenizer.eos_token_id} & tokens.keys()
    lost = vocabulary.without(sorted(ends))
    if lost and len(lost) == len(ends):
        raise CompatibilityError(
            f"{wrong}not all policies have {_named(chosen, lost)}, so no answer would end; "
            f"{elsewhere}"
        )
    if lost:
        yield f"{wrong}not all policies have {_named(chosen, lost)}, which ends no answer here"
    if lost := vocabulary.without(chosen.tokenizer.encode("a")):
        raise CompatibilityError(
            f"{wrong}it puts {_named(chosen, lost)} around each text, which not all policies "
            f"have; {elsewhere}"
        )
    if lost := vocabulary.without(_conversation(chosen)):
        yield (
            f"the chat template of {chosen.name!r} writes {_named(chosen, lost)}, which not all "
            f"policies have, so conversations are refused; {elsewhere}, or give --chat-template "
            "FILE"
        )


def _conversation(chosen: TextFiles) -> Sequence[int]:
    """The tokens of a short conversation; none if the template writes none like it."""
    if chosen.tokenizer.chat_template is None:
        return ()
    try:
        ids: Sequence[int] = chosen.tokenizer.apply_chat_template(
            [{"role": "user", "content": "a"}], add_generation_prompt=True, return_dict=False
        )
    except Exception:  # whatever a template raises, and it may want another conversation
        return ()
    return ids


def _named(chosen: TextFiles, ids: Sequence[int]) -> str:
    return ", ".join(dict.fromkeys(shown(chosen.tokens.tokens.get(index)) for index in ids))


def _left_out(members: Sequence[TextFiles], vocabulary: CommonVocabulary) -> tuple[str, ...]:
    tokens = {
        (index, shown(member.tokens.tokens[index]))
        for member in members
        for index in vocabulary.without(member.tokens.tokens)
    }
    return tuple(f"{index} {token}" for index, token in sorted(tokens))
