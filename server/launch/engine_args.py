"""vLLM's arguments: the user's vLLM flags, with the mixture added.

vLLM's own parser reads the user's flags. The arguments that belong to prefmix are then set on the
result, so that no spelling or abbreviation of an owned flag can slip past.
"""

from __future__ import annotations

import difflib
import json
import os
from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from vllm.engine.arg_utils import _expand_json_human_readable_numbers
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser

from prefmix.mixing import start_stages
from prefmix.mixing.checkpoints.compatibility import CompatibilityError
from prefmix.mixing.checkpoints.lora import AdapterError
from prefmix.mixing.checkpoints.text_files import default_files
from prefmix.mixing.spec import (
    OVERRIDDEN_KEYS,
    MixtureSpec,
    SpecError,
    hf_overrides,
    with_overrides,
)
from prefmix.server.config.errors import CommandError
from prefmix.server.config.serve_config import ServeConfig
from prefmix.server.launch.cpu_dtype import choose_dtype
from prefmix.server.launch.engine_flags import check_flags
from prefmix.server.launch.mixture_flags import REFUSED, check_mixture_flags
from prefmix.server.launch.safe_flags import SAFE_FIELDS
from prefmix.server.launch.security_checks import check_cross_origin, safe_load_format

_OWNED = {
    "model_tag": "the policies are given with --policy NAME=MODEL or policies: in the file",
    "model": "the policies are given with --policy NAME=MODEL or policies: in the file",
    "revision": "a policy's revision is given as {model: ..., revision: ...} in the file",
    "served_model_name": "use --name before '--', or name: in the file",
    "host": "use --host before '--', or host: in the file",
    "port": "use --port before '--', or port: in the file",
    "shutdown_timeout": "use --drain-timeout before '--', or drain_timeout: in the file",
    "max_num_queued_reqs": "use --max-waiting before '--', or max_waiting: in the file",
    "config": "put vLLM's flags under engine: in the prefmix file",
}
"""vLLM's arguments that prefmix sets, and what to use instead."""

_UNSET = object()


class _Parser(FlexibleArgumentParser):
    """vLLM's parser, which raises one sentence instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            word = message.removeprefix(prefix).split("=")[0].split()[0]
            close = difflib.get_close_matches(word, flags, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            message = f"unknown flag {word}{hint}"
        raise CommandError(f"vLLM's flags: {message}", exit_code=2)


def engine_tokens(engine: Mapping[str, Any]) -> list[str]:
    """Writes the file's `engine:` mapping as command-line words; keys in snake or kebab case.

    Raises: CommandError for a key or value that no flag can carry.
    """
    words: list[str] = []
    for key, value in engine.items():
        if not isinstance(key, str) or not key.strip("-"):
            raise CommandError(f"engine: the key {key!r} is not a vLLM flag", exit_code=2)
        flag = key.strip("-").replace("_", "-")
        if value is None:
            raise CommandError(
                f"engine.{key} is empty; give it a value, true or false", exit_code=2
            )
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            words += [f"--{flag}", *(str(item) for item in value)]
        elif isinstance(value, dict):
            words.append(f"--{flag}={json.dumps(value)}")
        else:
            words.append(f"--{flag}={value}")
    return words


def build_arguments(
    config: ServeConfig, spec: MixtureSpec, passthrough: Sequence[str]
) -> Namespace:
    """Parses the user's vLLM flags and adds the mixture.

    Args:
      config: its `engine` flags come first, so `passthrough` overrides them.
      spec: the mixture.
      passthrough: the words after `--`.
    Returns: the arguments of vLLM's own `serve` command.
    Raises: CommandError for an unknown flag, a bad value, a flag that prefmix owns, or one that
      can load code and is not allowed to.
    """
    words = [*engine_tokens(config.engine), *passthrough]
    args = _parse(words, unsafe_flags=config.allow_unsafe_engine_flags)
    first = spec.checkpoints[0]
    args.model_tag = None
    args.model = first.model
    args.revision = first.revision
    args.served_model_name = [config.name]
    args.host = config.host
    args.port = config.port
    args.shutdown_timeout = config.limits().shutdown_timeout
    args.config = None
    args.hf_overrides = _hf_overrides(args.hf_overrides, spec)
    _take_defaults(args, spec)
    choose_dtype(args, spec)
    try:
        validate_parsed_serve_args(args)
    except (TypeError, ValueError) as error:
        raise CommandError(f"vLLM's flags: {error}", exit_code=2) from None
    args.enable_offline_docs &= not args.disable_fastapi_docs
    check_cross_origin(args)
    if not config.allow_unsafe_weights:
        args.load_format = safe_load_format(args.load_format)
    return args


def flag_errors(config: ServeConfig, spec: MixtureSpec, passthrough: Sequence[str]) -> list[str]:
    """One sentence for each of the user's flags that is refused whatever the others are.

    Args: as `build_arguments`.
    """
    given: list[dict[str, Any] | list[str]] = [{key: each} for key, each in config.engine.items()]
    groups: list[list[str]] = []
    errors = []
    for word in passthrough:
        if word.startswith("--") or not groups:
            groups.append([])
        groups[-1].append(word)
    given += groups
    for flag in given:
        try:
            words = engine_tokens(flag) if isinstance(flag, dict) else flag
            args = _parse(words, unsafe_flags=config.allow_unsafe_engine_flags)
            _hf_overrides(args.hf_overrides, spec)
        except CommandError as error:
            errors.append(str(error))
    return errors


def _parse(words: list[str], *, unsafe_flags: bool) -> Namespace:
    parser = _Parser(prog="prefmix serve --")
    make_arg_parser(parser)
    # Progress bars, uvicorn's start-up lines and its access log are off unless asked for.
    shows_files = start_stages.VARIABLE in os.environ  # the launcher reads vLLM's bar of files
    parser.set_defaults(uvicorn_log_level="warning", use_tqdm_on_load=shows_files)
    # /docs loads its scripts from this server, not from a public host.
    parser.set_defaults(enable_offline_docs=True)
    defaults = {name: parser.get_default(name) for name in _OWNED}
    if any(word == "--config" or word.startswith("--config=") for word in words):
        raise CommandError(f"vLLM's flag --config: {_OWNED['config']}", exit_code=2)
    if not unsafe_flags:
        # Before vLLM makes its own objects of the values, which already imports what some name.
        with _plain_values(parser):
            plain = vars(parser.parse_args(words))
        others = {name: plain[name] for name in plain if name not in (*_OWNED, *REFUSED)}
        check_flags(others, {name: parser.get_default(name) for name in others})
    # A name already in the namespace is left alone by argparse unless its flag appears.
    args: Namespace = parser.parse_args(words, Namespace(**dict.fromkeys(_OWNED, _UNSET)))
    for name, remedy in _OWNED.items():
        # A positional argument that is absent comes as None.
        if getattr(args, name) not in (_UNSET, None):
            what = repr(args.model_tag) if name == "model_tag" else _flag(name)
            raise CommandError(f"vLLM's argument {what} is not accepted: {remedy}", exit_code=2)
        setattr(args, name, defaults[name])
    given = {name: value for name, value in vars(args).items() if name not in _OWNED}
    check_mixture_flags(given, {name: parser.get_default(name) for name in given})
    return args


@contextmanager
def _plain_values(parser: _Parser) -> Iterator[None]:
    """Makes the parser read flags that hold several settings as mappings."""
    actions = [action for action in parser._actions if action.dest in SAFE_FIELDS]
    types = [action.type for action in actions]
    try:
        for action in actions:
            action.type = _json_object
        yield
    finally:
        for action, kind in zip(actions, types, strict=True):
            action.type = kind


def _json_object(text: str) -> Any:
    try:
        value = json.loads(_expand_json_human_readable_numbers(text))
    except ValueError as error:
        raise ArgumentTypeError(f"{text:.80} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ArgumentTypeError(f"{text:.80} is no JSON object")
    return value


def _hf_overrides(given: object, spec: MixtureSpec) -> dict[str, Any]:
    """The user's overrides of every member's config, with those that make the mixture."""
    if not isinstance(given, dict):
        raise CommandError("vLLM's flag --hf-overrides: expected a JSON object", exit_code=2)
    taken = OVERRIDDEN_KEYS & given.keys()
    if taken:
        raise CommandError(
            f"vLLM's flag --hf-overrides sets {min(taken)!r}, which prefmix sets itself; "
            "leave that key out",
            exit_code=2,
        )
    if spec.base is not None:
        return {**given, **hf_overrides(spec)}
    try:
        return hf_overrides(with_overrides(spec, given))
    except SpecError as error:
        raise CommandError(f"vLLM's flag --hf-overrides: {error}", exit_code=2) from None


def _take_defaults(args: Namespace, spec: MixtureSpec) -> None:
    """Sets the arguments by which vLLM reads tokenizer and generation config of `defaults_from`."""
    if spec.defaults_from is None:
        return
    given = {
        "tokenizer": args.tokenizer,
        "tokenizer_revision": args.tokenizer_revision,
        "generation_config": None if args.generation_config == "auto" else args.generation_config,
    }
    for name, value in given.items():
        if value is not None:
            raise CommandError(
                f"vLLM's flag {_flag(name)} and defaults_from are both given, which name the same "
                "files; leave one of them out",
                exit_code=2,
            )
    try:
        files = default_files(spec)
    except (AdapterError, CompatibilityError) as error:
        raise CommandError(str(error), exit_code=2) from None
    for name, folder in files.items():
        setattr(args, name, folder)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
