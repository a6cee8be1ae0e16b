"""Finds a reward by its name: a function of a module or of a file, or else a reward model."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from prefmix.policies.errors import TrainError
from prefmix.policies.rewards.functions import FunctionReward
from prefmix.policies.rewards.models import ModelReward
from prefmix.policies.rewards.reward import Reward
from prefmix.policies.rewards.source_lines import line_of_error

_FORMS = "expected module:function, or file.py:function"


def load_reward(spec: str, *, max_length: int, allow_unsafe_weights: bool = False) -> Reward:
    """Loads `module:function` or `file.py:function`, or else a reward model's checkpoint.

    Args:
      spec: a function, or a folder or hub id.
      max_length: tokens of prompt and answer that a model reads.
      allow_unsafe_weights: true allows files other than safetensors.
    Raises: TrainError if it cannot be loaded.
    """
    if spec.endswith(".py") or (":" in spec and not Path(spec).exists()):
        return FunctionReward(load_function(spec), spec)
    return ModelReward(spec, max_length=max_length, allow_unsafe_weights=allow_unsafe_weights)


def load_function(spec: str) -> Callable[..., Any]:
    """Imports `module:function` or `file.py:function`; `function` may be dotted.

    Modules of the working directory are found, and those beside a file. A class is called once,
    without arguments, and its object is the function.
    Raises: TrainError.
    """
    source, _, name = spec.rpartition(":") if ":" in spec else (spec, "", "")
    if source.endswith(".py"):
        module = _module_of_file(Path(source).expanduser(), spec)
    else:
        module = _module(source, spec)
    if not name:
        raise TrainError(f"the reward function {spec!r} has no name behind the file; {_FORMS}")
    found: Any = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            known = sorted(n for n, v in vars(module).items() if callable(v) and n[:1] != "_")
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TrainError(
                f"cannot import the reward function {spec!r} ({source} has no {name!r}); "
                f"{_FORMS}{hint}"
            ) from None
    if inspect.isclass(found):
        try:
            found = found()
        except Exception as error:  # someone else's code may raise anything
            raise TrainError(
                f"the reward {spec!r} is a class and cannot be made without arguments "
                f"({_told(error)}); name a function, or an object that it made"
            ) from error
    if not callable(found):
        raise TrainError(f"the reward {spec!r} is a {type(found).__name__}, no function")
    function: Callable[..., Any] = found
    return function


def _module(name: str, spec: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # someone else's code may raise anything
        raise _not_imported(spec, error) from error


def _module_of_file(path: Path, spec: str) -> ModuleType:
    try:
        return _executed(path.resolve(strict=True))
    except FileNotFoundError as error:
        if error.filename is None or Path(error.filename).name != path.name:
            raise _not_imported(spec, error) from error
        raise TrainError(
            f"cannot import the reward function {spec!r} (there is no file {path}); {_FORMS}"
        ) from None
    except (Exception, SystemExit) as error:  # someone else's code may raise anything
        raise _not_imported(spec, error) from error


@functools.cache
def _executed(path: Path) -> ModuleType:
    """The module of a file, run once, under a name that no other module has."""
    name = f"_reward_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[name] = module  # dataclasses and pickle look there
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _not_imported(spec: str, error: BaseException) -> TrainError:
    return TrainError(f"cannot import the reward function {spec!r} ({_told(error)}); {_FORMS}")


def _told(error: BaseException) -> str:
    """An error of the user's code in one line, with its place if that is known."""
    place = line_of_error(error)
    kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
    return f"{f'{place}: ' if place else ''}{kind}{' '.join(str(error).split())}"
