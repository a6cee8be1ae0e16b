"""The work around that of both commands: checks first, a whole folder last."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefmix.server.cli.averaging.shares import Averaged
from prefmix.server.config.errors import CommandError, ConfigError

if TYPE_CHECKING:
    import argparse


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turns the errors of configurations, stores and checkpoints into CommandErrors."""
    from safetensors import SafetensorError

    from prefmix.mixing.checkpoints.compatibility import CompatibilityError
    from prefmix.mixing.checkpoints.lora import AdapterError
    from prefmix.mixing.checkpoints.safe_files import CheckpointFilesError
    from prefmix.mixing.spec import SpecError
    from prefmix.weights.averages.errors import ParameterAverageError
    from prefmix.weights.store.errors import StoreFormatError

    try:
        yield
    except (ConfigError, SpecError, CompatibilityError, CheckpointFilesError) as error:
        raise CommandError(str(error), exit_code=2) from None
    except StoreFormatError as error:
        raise CommandError(str(error), exit_code=2) from None
    except (ParameterAverageError, AdapterError) as error:
        raise CommandError(str(error)) from None
    except SafetensorError as error:  # of a full disk, too, which it reports as its own error
        raise CommandError(f"the parameters could not be written: {error}") from None


@contextmanager
def writing(
    args: argparse.Namespace, subject: Averaged, record: dict[str, Any], *, needed_bytes: int
) -> Iterator[Path]:
    """Yields the folder to fill, and publishes it with its record once it is whole.

    Args:
      record: entries of the record that the command adds, while it runs.
      needed_bytes: size of the parameters.
    """
    from importlib.metadata import version

    from prefmix.weights.averages.output_folder import RECORD, output_folder

    with output_folder(
        args.output, force=args.force, needed_bytes=needed_bytes, sources=_sources(subject)
    ) as folder:
        yield folder
        content = {"format": 1, "prefmix": version("prefmix"), **subject.record, **record}
        (folder / RECORD).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_before(args: argparse.Namespace, subject: Averaged) -> None:
    """Checks the output and the models. Raises: the errors that `one_sentence` knows."""
    from prefmix.server.launch.in_process import check_models, import_vllm
    from prefmix.server.launch.installation import require_vllm
    from prefmix.weights.averages.output_folder import check_output

    check_output(args.output, force=args.force, sources=_sources(subject))
    require_vllm()
    if subject.spec.base is not None:  # adapters are read by vLLM
        import_vllm(subject.spec)
    for warning in check_models(subject.config, subject.spec).warnings:
        print(f"warning: {warning}")


def _sources(subject: Averaged) -> list[Path]:
    models = [*subject.spec.checkpoints, *subject.spec.adapters]
    return [Path(each.model) for each in models if Path(each.model).is_dir()]
