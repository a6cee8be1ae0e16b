"""Checks that models can be mixed: they must have one tokenizer and one vocabulary.

Mixing adds up logits index by index, so index v must mean the same token to every member. Harmless
differences (depth, width, heads, architecture, padding of the vocabulary) are allowed. Differences
that would give silently wrong answers are refused, with the first one found.
"""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefmix.mixing.checkpoints.lora import AdapterError, read_adapter
from prefmix.mixing.spec import MixtureSpec, Policy

GENERATION_DEFAULTS = (
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "max_new_tokens",
)
"""Source: vllm.config.ModelConfig.get_diff_sampling_param (vLLM 0.32)."""


class CompatibilityError(ValueError):
    """Models that cannot share one mixture, or a model that cannot be read."""


@functools.lru_cache(maxsize=8)
def check_members(spec: MixtureSpec, *, trust_remote_code: bool = False) -> tuple[str, ...]:
    """Checks that all members of a mixture agree on every token.

    Args:
      spec: the mixture.
      trust_remote_code: passed on to transformers.
    Returns: warnings worth showing, one sentence each.
    Raises: CompatibilityError naming both policies and the first difference.
    """
    warnings: list[str] = []
    for adapter in spec.adapters:
        try:
            read_adapter(adapter)
        except AdapterError as error:
            raise CompatibilityError(str(error)) from error
    first, *others = (_Facts(member, trust_remote_code) for member in spec.checkpoints)
    for facts in (first, *others):
        facts.check_vocabulary_fits()
    for facts in others:
        for what, ours, theirs in _differences(first, facts):
            raise CompatibilityError(
                f"policies {first.name!r} and {facts.name!r} cannot be mixed: their {what} differ "
                f"({first.name}: {ours}; {facts.name}: {theirs}). A mixture adds up logits token "
                "by token; use models that were trained from one base with one tokenizer"
            )
        warnings.extend(_choices(first, facts))
    for adapter in spec.adapters:
        warnings.extend(_own_files(adapter, first))
    return tuple(warnings)


def _choices(first: _Facts, other: _Facts) -> Iterator[str]:
    """A warning for each setting in which two members differ and the first one's is used."""
    both = f"policies {first.name!r} and {other.name!r}"
    if other.tokenizer.chat_template != first.tokenizer.chat_template:
        yield (
            f"{both} have different chat templates; "
            f"that of {first.name!r} is used for all, choose another with --chat-template FILE"
        )
    if other.end_token_ids != first.end_token_ids:
        yield (
            f"{both} end a text with different tokens "
            f"({first.end_token_ids} and {other.end_token_ids}); "
            f"those of {first.name!r} are used, "
            "add others with stop_token_ids in the request"
        )
    for what, ours, theirs in (
        ("special tokens", first.special_tokens, other.special_tokens),
        ("defaults of generation", first.generation_defaults, other.generation_defaults),
    ):
        names = sorted(
            name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
        )
        if names:
            pairs = [
                f"{name} {_shown(ours.get(name))} and {_shown(theirs.get(name))}" for name in names
            ]
            yield (
                f"{both} have different {what} ({', '.join(pairs)}); those of {first.name!r} are "
                "used"
            )


def _own_files(adapter: Policy, base: _Facts) -> Iterator[str]:
    """A warning for each file beside an adapter that differs from the base's, which is used."""
    folder = read_adapter(adapter).folder
    if not (folder / "tokenizer.json").is_file():
        return
    try:
        own = _tokenizer(Policy(name=adapter.name, model=str(folder)), trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise any, even Exception itself
        yield (
            f"policy {adapter.name!r}: the tokenizer beside the adapter cannot be read "
            f"({_first_line(error)}); the base's is used"
        )
        return
    if own.chat_template is not None and own.chat_template != base.tokenizer.chat_template:
        yield (
            f"policy {adapter.name!r} was saved with another chat template than the base's, which "
            "is used; choose another with --chat-template FILE"
        )
    for index, ours, bases in _first_difference(own.get_vocab(), base.vocabulary):
        yield (
            f"policy {adapter.name!r} was saved with another tokenizer than the base's, which is "
            f"used (at index {index}: {ours}; base: {bases})"
        )


class _Facts:
    """The properties of one member that are compared."""

    def __init__(self, member: Policy, trust_remote_code: bool) -> None:
        from transformers import AutoConfig

        self.name = member.name
        _check_folder(member)
        try:
            self.config = AutoConfig.from_pretrained(
                member.model, trust_remote_code=trust_remote_code, revision=member.revision
            ).get_text_config()
            self.num_rows = operator.index(self.config.vocab_size)
            self.tokenizer = _tokenizer(member, trust_remote_code)
            self.vocabulary: dict[str, int] = self.tokenizer.get_vocab()
            self.highest = max(self.vocabulary.values())
            self._read_generation_config(member)
        except ImportError:  # of a package that the model needs
            raise
        except Exception as error:  # transformers and tokenizers raise any, even Exception itself
            raise CompatibilityError(
                f"policy {member.name!r}: cannot read the config and tokenizer of {member.model!r} "
                f"({_first_line(error)}); give a folder or hub id in Hugging Face layout"
            ) from error

    def _read_generation_config(self, member: Policy) -> None:
        from transformers import GenerationConfig

        try:
            generation = GenerationConfig.from_pretrained(member.model, revision=member.revision)
            given = generation.to_diff_dict()
        except OSError:
            generation, given = self.config, {}
        end = generation.eos_token_id if generation.eos_token_id is not None else []
        self.end_token_ids = sorted({end} if isinstance(end, int) else set(end))
        self.generation_defaults = {
            name: given[name] for name in GENERATION_DEFAULTS if given.get(name) is not None
        }

    def check_vocabulary_fits(self) -> None:
        """Refuses a tokenizer with more tokens than the model has rows; fewer are padding."""
        if self.highest >= self.num_rows:
            token = next(token for token, at in self.vocabulary.items() if at == self.highest)
            raise CompatibilityError(
                f"policy {self.name!r}: its tokenizer has token {token!r} at index {self.highest}, "
                f"but the model's vocabulary ends at {self.num_rows - 1}; the tokenizer "
                "belongs to another model"
            )

    @property
    def special_tokens(self) -> dict[str, object]:
        # The padding token is left out: serving never pads, and fine-tunes often rename it.
        names = ("bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token")
        return {name: getattr(self.tokenizer, name, None) for name in names}

    @property
    def rules(self) -> dict[str, str]:
        """Rules that split text, as JSON by section; empty if there is no Rust backend."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return {}
        state = json.loads(backend.to_str())
        rules = {
            section: state[section]
            for section in ("normalizer", "pre_tokenizer", "post_processor", "decoder")
        }
        rules["merges"] = state["model"].get("merges")
        rules["kind"] = state["model"].get("type")
        return {section: json.dumps(rule, ensure_ascii=False) for section, rule in rules.items()}


def _tokenizer(member: Policy, trust_remote_code: bool) -> Any:
    """Reads the tokenizer from its files.

    AutoTokenizer is only the second choice: it adapts a tokenizer to the model's architecture, so
    the same tokenizer.json would look different in a Llama and in a Qwen folder.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(member.model, revision=member.revision)
    except (OSError, ValueError):
        return AutoTokenizer.from_pretrained(
            member.model, revision=member.revision, trust_remote_code=trust_remote_code
        )


def _differences(first: _Facts, other: _Facts) -> Iterator[tuple[str, str, str]]:
    """Yields (what differs, the first's, the other's), the most telling difference first."""
    for index, ours, theirs in _first_difference(first.vocabulary, other.vocabulary):
        yield f"vocabularies, at index {index},", ours, theirs
    rules, rules_other = first.rules, other.rules
    for section in sorted(rules.keys() | rules_other.keys()):
        rule, rule_other = rules.get(section), rules_other.get(section)
        if rule != rule_other:
            yield f"tokenizers' {section} rules", f"{rule:.80}", f"{rule_other:.80}"


def _first_difference(
    ours: dict[str, int], theirs: dict[str, int]
) -> Iterator[tuple[int, str, str]]:
    """Yields (index, our token, their token) where two vocabularies first differ, if they do."""
    if ours == theirs:
        return
    by_index, by_index_other = _inverted(ours), _inverted(theirs)
    for index in sorted(by_index.keys() | by_index_other.keys()):
        token, token_other = by_index.get(index), by_index_other.get(index)
        if token != token_other:
            yield index, _shown(token), _shown(token_other)
            return


def _inverted(vocabulary: dict[str, int]) -> dict[int, str]:
    return {index: token for token, index in vocabulary.items()}


def _shown(token: object) -> str:
    return "none" if token is None else repr(token)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _check_folder(member: Policy) -> None:
    path = Path(member.model).expanduser()
    if path.is_absolute() and not path.is_dir():
        raise CompatibilityError(
            f"policy {member.name!r}: there is no folder {member.model!r}; "
            "give a folder with config.json and safetensors, or a hub id"
        )
