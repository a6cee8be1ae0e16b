"""The weighted sum of LoRA adapters' updates, as one adapter: exact, or cut to a rank.

sum_k w_k s_k B_k A_k = [w_1 s_1 B_1, ..., w_K s_K B_K] [A_1; ...; A_K], whose rank is the sum of
ranks. The nearest update of a smaller rank R in the Frobenius norm is that of the R largest
singular values (Eckart and Young 1936), found from the factors: with B = Q_B R_B and
A^T = Q_A R_A, the singular values of B A are those of the small matrix R_B R_A^T.

Shapes: S sum of ranks, R rank kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefmix.mixing.checkpoints.file_names import ADAPTER_CONFIG, ADAPTER_PARAMETERS
from prefmix.mixing.checkpoints.lora import read_adapter
from prefmix.mixing.spec import Policy
from prefmix.weights.averages.errors import ParameterAverageError
from prefmix.weights.engines.progress import Progress

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Update:
    """The update of one linear layer, B A."""

    lora_a: torch.Tensor
    """[S, in], float32."""
    lora_b: torch.Tensor
    """[out, S], float32, with weights and scalings in it."""
    error: float = 0.0
    """|| update - exact update || / || exact update ||, Frobenius norms; 0 if nothing was cut."""

    @property
    def rank(self) -> int:
        """S, or R."""
        return len(self.lora_a)


@dataclass(frozen=True, kw_only=True)
class WrittenAdapter:
    """The adapter that was written."""

    rank: int
    """The largest rank of a layer."""
    errors: Mapping[str, float]
    """Linear layer -> `Update.error`."""
    num_bytes: int
    """Bytes of the factors."""


class AdapterSum:
    """The weighted sum of some adapters, read layer by layer."""

    def __init__(self, shares: Mapping[Policy, float], stack: ExitStack) -> None:
        """Args:
        shares: adapter -> its share; an adapter without factors for a layer does not update it.
        stack: closes the files.
        """
        self._adapters = [read_adapter(policy) for policy in shares]
        self._reads = [stack.enter_context(adapter.opened()) for adapter in self._adapters]
        self._shares = list(shares.values())
        self.modules = tuple(dict.fromkeys(name for each in self._adapters for name in each.ranks))
        """The linear layers that are updated."""

    @property
    def first_config(self) -> dict[str, Any]:
        """The first adapter's config, as PEFT wrote it."""
        text = (self._adapters[0].folder / ADAPTER_CONFIG).read_text(encoding="utf-8")
        return dict(json.loads(text))

    def update(self, module: str) -> Update:
        """The sum of the updates of one layer.

        Raises: ParameterAverageError if the adapters have different sizes.
        """
        import torch

        sides = []
        for adapter, read, share in zip(self._adapters, self._reads, self._shares, strict=True):
            if module in adapter.ranks:
                factors = read(module)
                scaled = factors.lora_b.float() * (share * factors.scaling)
                sides.append((factors.lora_a.float(), scaled))
        first_a, first_b = sides[0]
        if any(a.shape[1] != first_a.shape[1] or len(b) != len(first_b) for a, b in sides):
            raise ParameterAverageError(
                f"the adapters update {module!r} in different sizes; they belong to different bases"
            )
        lora_a = torch.cat([a for a, _ in sides]).contiguous()
        return Update(lora_a, torch.cat([b for _, b in sides], dim=1).contiguous())


@contextmanager
def opened_sum(shares: Mapping[Policy, float]) -> Iterator[AdapterSum]:
    """Opens the files of the adapters that have a share."""
    with ExitStack() as stack:
        yield AdapterSum(shares, stack)


def truncated(update: Update, rank: int) -> Update:
    """The nearest update of at most `rank`; the update itself if it has no more.

    The square roots of the singular values go to both sides. Computed in float64.
    """
    import torch

    if update.rank <= rank:
        return update
    basis_b, upper_b = torch.linalg.qr(update.lora_b.double())
    basis_a, upper_a = torch.linalg.qr(update.lora_a.double().T)
    left, values, right = torch.linalg.svd(upper_b @ upper_a.T, full_matrices=False)
    root = values[:rank].sqrt()
    norm = float(values.norm())
    return Update(
        lora_a=(root[:, None] * (right[:rank] @ basis_a.T)).float().contiguous(),
        lora_b=((basis_b @ left[:, :rank]) * root).float().contiguous(),
        error=float(values[rank:].norm()) / norm if norm else 0.0,
    )


def write_adapter_average(
    folder: Path,
    shares: Mapping[Policy, float],
    *,
    base: str | None = None,
    rank: int | None = None,
    progress: Progress | None = None,
) -> WrittenAdapter:
    """Writes the average of LoRA adapters' updates as an adapter in PEFT's format, in float32.

    Args:
      folder: an empty folder.
      shares: adapter -> its share, not empty.
      base: the base that the adapter's config names; None is that of the first adapter.
      rank: the highest rank of a layer; None keeps the sums of ranks, which are exact.
      progress: shows how many layers are done; None is silent.
    """
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    errors: dict[str, float] = {}
    with opened_sum(shares) as total:
        given = total.first_config
        stage = (progress or Progress(quiet=True)).stage("write", len(total.modules), "layers")
        with stage.working():
            for module in total.modules:
                exact = total.update(module)
                update = exact if rank is None else truncated(exact, rank)
                stem = f"base_model.model.{module}.lora_"
                tensors |= {f"{stem}A.weight": update.lora_a, f"{stem}B.weight": update.lora_b}
                ranks[module], errors[module] = update.rank, update.error
                stage.advance(1)
    save_file(tensors, folder / ADAPTER_PARAMETERS, metadata={"format": "pt"})
    config = _config(ranks, base or given.get("base_model_name_or_path"), given)
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")
    return WrittenAdapter(
        rank=max(ranks.values()),
        errors=errors,
        num_bytes=sum(tensor.nbytes for tensor in tensors.values()),
    )


def _config(ranks: Mapping[str, int], base: object, given: Mapping[str, Any]) -> dict[str, Any]:
    """A plain config: of the adapters' own only what the layers are like.

    Alpha equals the rank everywhere, because the scaling is in B already.
    """
    rank = max(ranks.values())
    other = {module: own for module, own in ranks.items() if own != rank}
    return {
        "peft_type": "LORA",
        "task_type": given.get("task_type", "CAUSAL_LM"),
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": bool(given.get("fan_in_fan_out", False)),
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
