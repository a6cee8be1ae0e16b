"""Refuses vLLM's flags that can load code, unless they are allowed on the command line.

Whoever writes a configuration decides what is served, but runs no code here (SECURITY.md). So only
flags of a list are taken (prefmix.server.launch.safe_flags). The unsafe ones have a reason each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from prefmix.server.config.errors import CommandError
from prefmix.server.launch.safe_flags import SAFE_FIELDS, SAFE_FLAGS

ALLOW_FLAG = "--allow-unsafe-engine-flags"

_IMPORTS = "imports and runs the code that it names"
_UNPICKLES = "takes pickled objects from elsewhere, which can run any code"

_NAMING_CODE = """
ec_manager_config.encoder_cache_manager_cls ec_transfer_config.ec_connector_extra_config
ec_transfer_config.ec_connector_module_path io_processor_plugin
kv_transfer_config.kv_connector_extra_config kv_transfer_config.kv_connector_module_path
log_config_file logging_config.pylogging_config_file logits_processors middleware
model_class_overrides reasoning_parser_plugin scheduler_cls
structured_outputs_config.reasoning_parser_plugin tool_parser_plugin worker_cls
worker_extension_cls
"""

UNSAFE_FLAGS = {
    **dict.fromkeys(_NAMING_CODE.split(), _IMPORTS),
    **dict.fromkeys(["trust_remote_code", "code_revision"], "runs code from a model's folder"),
    "additional_config": "hands any settings to plugins of the platform",
    "ec_manager_config.manager_config": "hands any settings to the class that it belongs to",
    "mm_processor_kwargs": "hands any settings to the model's processor",
    "compilation_config.cache_dir": "runs the compiled kernels of the folder that it names",
    "compilation_config.debug_dump_path": "writes files of code into the folder that it names",
    "compilation_config.inductor_compile_config": "chooses the compilers that are run",
    "compilation_config.inductor_passes": _IMPORTS,
    "tool_server": "calls tools that run code written by the model",
    "weight_transfer_config": _UNPICKLES,
    **dict.fromkeys(
        ["allowed_local_media_path", "allowed_media_domains"], "lets requests name what is read"
    ),
    **dict.fromkeys(
        ["trust_request_chat_template", "trust_request_mm_kwargs"],
        "lets requests bring templates and settings of their own",
    ),
}
"""vLLM's flags, and `flag.field` of those that hold several settings, that can load code or open
what prefmix keeps closed; each with the reason."""

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
SAFE_VALUES = {
    "compilation_config.backend": (("inductor", "eager", ""), _IMPORTS),
    "data_parallel_address": (_LOOPBACK, _UNPICKLES),
    "distributed_executor_backend": (("mp", "ray", "uni", "external_launcher"), _IMPORTS),
    "master_addr": (_LOOPBACK, _UNPICKLES),
}
"""Flag -> (the values that are safe, the reason why others are not)."""

CHECKED_ELSEWHERE = ("hf_overrides", "load_format")
"""Flags whose values prefmix.server.launch.engine_args checks by itself."""


def is_engine_flag(word: str) -> bool:
    """Tells whether a word of the command line, such as `--max-model-len`, is a flag of vLLM."""
    if not word.startswith("--"):
        return False
    name = word.removeprefix("--").replace("-", "_").partition(".")[0]
    known = (SAFE_FLAGS, SAFE_FIELDS, UNSAFE_FLAGS, SAFE_VALUES, CHECKED_ELSEWHERE)
    return any(each in flags for flags in known for each in (name, name.removeprefix("no_")))


def check_flags(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuses flags that can load code.

    Args:
      given: values by flag, in snake case, as vLLM's parser or a caller of Python gives them.
      defaults: vLLM's values of flags that were not given.
    Raises: CommandError naming the first such flag and the way to allow it.
    """
    for name, value in given.items():
        if value is None or _is_equal(value, defaults.get(name)):
            continue
        for setting, chosen in _settings(name, value):
            reason = _reason(setting, chosen)
            if reason is not None:
                flag, _, field = setting.partition(".")
                spelled = "--" + flag.replace("_", "-") + (f".{field}" if field else "")
                raise CommandError(
                    f"vLLM's flag {spelled} {reason}; leave it out, or trust whoever wrote it "
                    f"with this machine by {ALLOW_FLAG}, which no file can set",
                    exit_code=2,
                )


def _reason(setting: str, value: Any) -> str | None:
    """Says why a setting is not safe; None if it is."""
    if setting in SAFE_VALUES:
        values, reason = SAFE_VALUES[setting]
        return None if isinstance(value, str) and value in values else reason
    if setting in UNSAFE_FLAGS:
        return UNSAFE_FLAGS[setting]
    flag, _, field = setting.partition(".")
    if field in SAFE_FIELDS.get(flag, ()) or setting in SAFE_FLAGS or setting in CHECKED_ELSEWHERE:
        return None
    return "is not among those that are known to load no code"


def _settings(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yields (flag, value), or (flag.field, value) for each field that is not the default."""
    if name not in SAFE_FIELDS:
        yield name, value
        return
    if isinstance(value, Mapping):
        fields = dict(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        usual = type(value)()
        pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value) if f.init)
        fields = {key: each for key, each in pairs if not _is_equal(each, getattr(usual, key))}
    else:  # of no shape that is known here
        yield f"{name}.{type(value).__name__}", value
        return
    for field, each in fields.items():
        yield f"{name}.{field}", each


def _is_equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)
