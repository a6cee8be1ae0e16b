"""Parameter averages ("rewarded soups"): one policy whose parameters are a mean of others'.

For policies that were tuned from a common start, a parameter average competes with a mixture: one
model to run instead of K, but one weighting instead of one a request. Of adapters, the updates are
averaged: a weighted sum of products B A is one product again, of the factors side by side.
Source: Rame et al. 2023, Rewarded Soups (arXiv 2306.04488).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefmix.mixing.spec import MixtureSpec, Policy

if TYPE_CHECKING:
    import torch

PARAMETERS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class ParameterAverageError(ValueError):
    """Policies whose parameters have no average."""


def with_averages(
    spec: MixtureSpec, averages: Mapping[str, Mapping[str, float]], folder: Path
) -> MixtureSpec:
    """The mixture with parameter averages as further policies, after its own.

    Args:
      spec: the mixture; its members are folders or hub ids.
      averages: new policy's name -> member -> share. A share of the reference counts too.
      folder: where the averages are written, one folder each; these must not exist.
    Raises: ParameterAverageError.
    """
    members = {member.name: member for member in spec.members}
    adapters = {policy.name for policy in spec.adapters}
    added = []
    for name, shares in averages.items():
        overrides = _overrides(members, shares)
        if spec.base is not None:
            # The reference is the base itself: its update is 0.
            ours = {members[key]: share for key, share in shares.items() if key in adapters}
            path = write_adapter_average(folder / name, ours)
        else:
            path = write_average(
                folder / name, {fetched_folder(members[key]): s for key, s in shares.items()}
            )
        added.append(Policy(name=name, model=str(path), hf_overrides=overrides))
    return replace(spec, policies=(*spec.policies, *added))


def _overrides(members: Mapping[str, Policy], shares: Mapping[str, float]) -> Mapping[str, Any]:
    """The overrides of the config that all averaged members have."""
    first, *others = (members[name] for name in shares)
    for other in others:
        if other.hf_overrides != first.hf_overrides:
            raise ParameterAverageError(
                f"policies {first.name!r} and {other.name!r} have different hf_overrides, so their "
                "parameters have no average"
            )
    return first.hf_overrides


def write_average(folder: Path, shares: Mapping[Path, float]) -> Path:
    """Writes the average of full checkpoints, computed in float32 and stored in their dtypes.

    Args:
      folder: folder of the new checkpoint; must not exist.
      shares: checkpoint folder -> its share; the first also gives config and tokenizer.
    Returns: `folder`.
    Raises: ParameterAverageError if the checkpoints differ in the names or shapes of their tensors.
    """
    from safetensors.torch import save_file

    first, *others = shares
    dtypes: dict[str, torch.dtype] = {}
    average: dict[str, torch.Tensor] = {}
    for name, tensor in _tensors(first):
        dtypes[name] = tensor.dtype
        average[name] = tensor.float() * shares[first]
    for other in others:
        seen = set()
        for name, tensor in _tensors(other):
            seen.add(name)
            if name not in average or tensor.shape != average[name].shape:
                raise _differ(first, other, name)
            average[name] += tensor.float() * shares[other]
        if missing := average.keys() - seen:
            raise _differ(first, other, min(missing))
    folder.mkdir(parents=True)
    for path in first.iterdir():
        if path.suffix == ".json" and path.name != _INDEX:
            shutil.copy(path, folder / path.name)
    rounded = {name: tensor.to(dtypes[name]).contiguous() for name, tensor in average.items()}
    save_file(rounded, folder / PARAMETERS, metadata={"format": "pt"})
    return folder


def write_adapter_average(folder: Path, shares: Mapping[Policy, float]) -> Path:
    """Writes the average of LoRA adapters' updates, as an adapter whose rank is the sum of ranks.

    Args:
      folder: folder of the new adapter; must not exist.
      shares: adapter -> its share; an adapter without factors for a layer does not update it.
    Returns: `folder`.
    """
    import torch
    from safetensors.torch import save_file

    from prefmix.mixing.checkpoints.lora import read_adapter

    sides: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    config: dict[str, object] = {}
    for policy, share in shares.items():
        adapter = read_adapter(policy)
        config = json.loads((adapter.folder / "adapter_config.json").read_text(encoding="utf-8"))
        with adapter.opened() as read:
            for module in adapter.ranks:
                factors = read(module)
                scaled = factors.lora_b.float() * (share * factors.scaling)
                sides.setdefault(module, []).append((factors.lora_a.float(), scaled))
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    for module, pairs in sides.items():
        stem = f"base_model.model.{module}.lora_"
        lora_a = torch.cat([a for a, _ in pairs]).contiguous()
        tensors[f"{stem}A.weight"] = lora_a
        tensors[f"{stem}B.weight"] = torch.cat([b for _, b in pairs], dim=1).contiguous()
        ranks[module] = len(lora_a)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    # Alpha equals the rank everywhere: the scaling is in B already.
    rank = max(ranks.values())
    config |= {
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": sorted(ranks),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def fetched_folder(policy: Policy) -> Path:
    """The folder with a policy's files; a hub id is fetched unless it is in the hub's cache."""
    folder = Path(policy.model)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(policy.model, revision=policy.revision))


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of a checkpoint of one or several files."""
    from safetensors import safe_open

    files = [PARAMETERS]
    if (folder / _INDEX).exists():
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        files = sorted(set(index["weight_map"].values()))
    elif not (folder / PARAMETERS).exists():
        raise ParameterAverageError(
            f"{folder} holds no {PARAMETERS}; save it with save_pretrained, as safetensors"
        )
    for name in files:
        with safe_open(folder / name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                yield key, file.get_tensor(key)


def _differ(first: Path, other: Path, name: str) -> ParameterAverageError:
    return ParameterAverageError(
        f"{other} and {first} differ in {name!r}, so their parameters have no average"
    )
