"""The parameter average of full checkpoints, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prefmix.mixing.spec import Policy
from prefmix.weights.averages.checkpoint_files import (
    OpenCheckpoint,
    fetched_folder,
    opened,
    write_parameters,
)
from prefmix.weights.averages.copied_files import (
    checked_config,
    copy_text_files,
    overridden,
    write_config,
)
from prefmix.weights.averages.errors import ParameterAverageError
from prefmix.weights.engines.progress import Progress

if TYPE_CHECKING:
    import torch


def write_average(
    folder: Path,
    shares: Mapping[Policy, float],
    *,
    text_from: Policy | None = None,
    with_overrides: bool = False,
    progress: Progress | None = None,
) -> int:
    """Writes the average of full checkpoints, computed in float32 and stored in the first's dtypes.

    Args:
      folder: an empty folder, for the new checkpoint.
      shares: policy -> its share; the first gives config and dtypes.
      text_from: the model that gives tokenizer, chat template, special tokens and defaults of
        generation; None is the first policy.
      with_overrides: true writes the policies' overrides of the config into the config.
      progress: shows how many tensors are done; None is silent.
    Returns: the number of bytes of the parameters.
    Raises: ParameterAverageError if the policies compute different functions of their parameters,
      or differ in the names or shapes of their tensors.
    """
    policies = list(shares)
    folders = [fetched_folder(policy) for policy in policies]
    config = checked_config(policies, folders)
    if with_overrides:
        config = overridden(policies[0], folders[0], config)
    text = folders[0] if text_from is None else fetched_folder(text_from)
    with opened(folders) as checkpoints:
        _check_forms(policies, checkpoints)

        def average(name: str) -> torch.Tensor:
            return _average(name, policies, checkpoints, list(shares.values()))

        write_config(folder, config, folders[0], text)
        copy_text_files(folder, text)
        return write_parameters(folder, checkpoints[0].forms, average, progress=progress)


def average_bytes(shares: Mapping[Policy, float]) -> int:
    """The bytes of the parameters that an average will have. Raises: ParameterAverageError."""
    with opened([fetched_folder(next(iter(shares)))]) as (checkpoint,):
        return sum(form.num_bytes for form in checkpoint.forms.values())


def _check_forms(policies: Sequence[Policy], checkpoints: Sequence[OpenCheckpoint]) -> None:
    first = checkpoints[0].forms
    for policy, checkpoint in zip(policies[1:], checkpoints[1:], strict=True):
        for name in sorted(first.keys() | checkpoint.forms.keys()):
            ours, theirs = first.get(name), checkpoint.forms.get(name)
            if ours is None or theirs is None or ours.shape != theirs.shape:
                told = [f"{form.shape}" if form else "missing" for form in (ours, theirs)]
                raise ParameterAverageError(
                    f"policies {policies[0].name!r} and {policy.name!r} differ in {name!r} "
                    f"({told[0]} and {told[1]}), so their parameters have no average"
                )


def _average(
    name: str,
    policies: Sequence[Policy],
    checkpoints: Sequence[OpenCheckpoint],
    shares: Sequence[float],
) -> torch.Tensor:
    import torch

    first = checkpoints[0].read(name)
    if not first.is_floating_point():  # a table or a mask, which is no parameter
        for policy, checkpoint in zip(policies[1:], checkpoints[1:], strict=True):
            if not torch.equal(checkpoint.read(name), first):
                raise ParameterAverageError(
                    f"policies {policies[0].name!r} and {policy.name!r} differ in {name!r}, whose "
                    f"numbers are {first.dtype} and have no average"
                )
        return first
    if len(checkpoints) == 1 and shares[0] == 1:
        return first
    wide = torch.promote_types(first.dtype, torch.float32)
    total = first.to(wide) * shares[0]
    for checkpoint, share in zip(checkpoints[1:], shares[1:], strict=True):
        total.add_(checkpoint.read(name).to(wide), alpha=share)
    rounded = total.to(first.dtype)
    if not bool(torch.isfinite(rounded).all()):
        raise ParameterAverageError(
            f"the average of {name!r} is not finite in {first.dtype}: a policy's own is not, or "
            "the weights carry it out of range"
        )
    return rounded
