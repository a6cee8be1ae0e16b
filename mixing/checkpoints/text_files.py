"""Reads the files of a model that are about text: tokenizer, chat template, end tokens, defaults of
generation.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prefmix.mixing.checkpoints.file_names import CONFIG, GENERATION_CONFIG, TOKENIZER
from prefmix.mixing.checkpoints.hub import fetched_folder, first_line
from prefmix.mixing.checkpoints.lora import read_adapter
from prefmix.mixing.checkpoints.vocabularies import CompatibilityError, MemberTokens
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

_SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt")


@dataclass(frozen=True, eq=False)
class TextFiles:
    """The files of one member that decide how text becomes tokens, and where an answer ends."""

    tokens: MemberTokens
    generation: Any
    """transformers' GenerationConfig, or the model's config where there is none."""
    given_defaults: Mapping[str, Any]
    """The entries of the generation config that are not transformers' defaults."""

    @property
    def name(self) -> str:
        """The member's name."""
        return self.tokens.name

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, of transformers."""
        return self.tokens.tokenizer

    @cached_property
    def end_token_ids(self) -> list[int]:
        """The tokens that end an answer by the generation config."""
        end = self.generation.eos_token_id if self.generation.eos_token_id is not None else []
        return sorted({end} if isinstance(end, int) else set(end))

    @property
    def generation_defaults(self) -> dict[str, object]:
        """The parameters of sampling that a request need not give."""
        given = self.given_defaults
        return {name: given[name] for name in GENERATION_DEFAULTS if given.get(name) is not None}

    @property
    def special_tokens(self) -> dict[str, object]:
        """The roles of tokens. Padding is left out: serving never pads, and fine-tunes often rename
        it."""
        names = ("bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token")
        return {name: getattr(self.tokenizer, name, None) for name in names}

    @property
    def surroundings(self) -> str:
        """The rule that puts special tokens around a text, as JSON; empty if there is none."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        rule = getattr(backend, "post_processor", None)
        return "" if rule is None else rule.__getstate__().decode()


def read_checkpoint(member: Policy, trust_remote_code: bool) -> TextFiles:
    """Reads a full checkpoint's. Raises: CompatibilityError."""
    from transformers import AutoConfig

    _check_folder(member)
    try:
        config = AutoConfig.from_pretrained(
            member.model, trust_remote_code=trust_remote_code, revision=member.revision
        ).get_text_config()
        num_rows = operator.index(member.hf_overrides.get("vocab_size", config.vocab_size))
        tokens = MemberTokens(member.name, _tokenizer(member, trust_remote_code), num_rows)
        assert tokens.highest >= 0
        generation, given = _generation(member.model, member.revision) or (config, {})
        files = TextFiles(tokens, generation, given)
        assert files.end_token_ids is not None
    except ImportError:  # of a package that the model needs
        raise
    except Exception as error:  # transformers and tokenizers raise any, even Exception itself
        raise CompatibilityError(
            f"policy {member.name!r}: cannot read the config and tokenizer of {member.model!r} "
            f"({first_line(error)}); give a folder or hub id in Hugging Face layout"
        ) from error
    return files


def read_adapters_own(adapter: Policy, base: TextFiles) -> TextFiles | None:
    """Reads the files beside an adapter; of those that are missing, the base's count.

    Returns: None if there is no tokenizer beside the adapter.
    Raises: CompatibilityError if a file cannot be read.
    """
    folder = read_adapter(adapter).folder
    if not (folder / TOKENIZER).is_file():
        return None
    try:
        tokenizer = _tokenizer(Policy(name=adapter.name, model=str(folder)), False)
        tokens = MemberTokens(adapter.name, tokenizer, base.tokens.num_rows)
        assert tokens.highest >= 0
        own = _generation(str(folder), None) if (folder / GENERATION_CONFIG).is_file() else None
        files = TextFiles(tokens, *(own or (base.generation, base.given_defaults)))
        assert files.end_token_ids is not None
    except Exception as error:  # transformers and tokenizers raise any, even Exception itself
        raise CompatibilityError(first_line(error)) from error
    return files


def check_tokenizer(spec: MixtureSpec, given: Policy, *, trust_remote_code: bool = False) -> None:
    """Checks a tokenizer that vLLM's own flag names instead of a policy's.

    Args:
      given: its `model` is the tokenizer's folder or hub id.
    Raises: CompatibilityError for a token that the policies do not have under its id.
    """
    first = spec.checkpoints[0]
    is_policys = (given.model, given.revision) == (first.model, first.revision)
    if is_policys or spec.defaults_from is not None:  # which are checked as policies
        return
    try:
        own: dict[str, int] = _tokenizer(given, trust_remote_code).get_vocab()
        policies: dict[str, int] = _tokenizer(first, trust_remote_code).get_vocab()
    except ImportError:  # of a package that the tokenizer needs
        raise
    except Exception as error:  # transformers and tokenizers raise any, even Exception itself
        raise CompatibilityError(
            f"the tokenizer {given.model!r} cannot be read ({first_line(error)}); give a folder "
            "or hub id in Hugging Face layout, or leave --tokenizer out"
        ) from error
    known = {index: token for token, index in policies.items()}
    for token, index in sorted(own.items(), key=lambda item: item[1]):
        if known.get(index) != token:
            raise CompatibilityError(
                f"the tokenizer {given.model!r} has other tokens than policy {first.name!r} (at "
                f"index {index}: {token!r:.40}; {first.name}: {known.get(index)!r:.40}), so texts "
                "would mean something else to the policies; leave --tokenizer out"
            )


def default_files(spec: MixtureSpec) -> dict[str, str]:
    """vLLM's arguments that name the files of `spec.defaults`.

    Returns: `tokenizer` and `generation_config` as folders; nothing if the model that vLLM is
      started with has them.
    Raises: CompatibilityError, AdapterError for files that are missing.
    """
    source = spec.defaults
    if source == spec.checkpoints[0]:
        return {}
    if source not in spec.adapters:
        folder = fetched_folder(
            source,
            holds=f"{CONFIG} and {TOKENIZER}",
            refuse=CompatibilityError,
            patterns=_SMALL_FILES,
        )
        return {"tokenizer": str(folder), "generation_config": str(folder)}
    own = read_adapter(source).folder
    if not (own / TOKENIZER).is_file():
        raise CompatibilityError(
            f"defaults_from is {source.name!r}, but beside that adapter there is no {TOKENIZER}; "
            "save its tokenizer there, or leave defaults_from out"
        )
    has_generation = (own / GENERATION_CONFIG).is_file()
    return {"tokenizer": str(own)} | ({"generation_config": str(own)} if has_generation else {})


def _generation(model: str, revision: str | None) -> tuple[Any, dict[str, Any]] | None:
    """The generation config and what in it is not transformers' default; None without one."""
    from transformers import GenerationConfig

    try:
        generation = GenerationConfig.from_pretrained(model, revision=revision)
    except OSError:
        return None
    return generation, generation.to_diff_dict()


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


def _check_folder(member: Policy) -> None:
    path = Path(member.model).expanduser()
    if path.is_absolute() and not path.is_dir():
        raise CompatibilityError(
            f"policy {member.name!r}: there is no folder {member.model!r}; "
            "give a folder with config.json and safetensors, or a hub id"
        )
