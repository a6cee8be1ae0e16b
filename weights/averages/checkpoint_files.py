"""The tensors of a checkpoint, read one at a time, and the files that they are written to.

No function here holds a whole model: reading maps the files, and writing holds one file's tensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefmix.mixing.checkpoints import hub
from prefmix.mixing.checkpoints.file_names import CONFIG, INDEX, PARAMETERS
from prefmix.mixing.spec import Policy
from prefmix.weights.averages.errors import ParameterAverageError
from prefmix.weights.engines.progress import Progress

if TYPE_CHECKING:
    import torch

FILE_BYTES = 2**30
"""The most bytes of tensors in one file that is written; a larger tensor has its own file."""

_FETCHED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py")


@dataclass(frozen=True, slots=True)
class TensorForm:
    """A tensor as the head of its safetensors file describes it."""

    dtype: str
    """Name in the safetensors format, such as BF16."""
    shape: tuple[int, ...]
    num_bytes: int


class OpenCheckpoint:
    """A checkpoint of one file or several."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        """Args:
        folder: of the checkpoint.
        stack: closes the files.
        Raises: ParameterAverageError if there are no parameters, or a file cannot be read.
        """
        from safetensors import SafetensorError, safe_open

        self.folder = folder
        self.forms: dict[str, TensorForm] = {}
        """Tensor name -> form, in the order of the files."""
        self._files: dict[str, Any] = {}
        for name in _file_names(folder):
            try:
                file = stack.enter_context(safe_open(folder / name, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise ParameterAverageError(
                    f"{folder / name} cannot be read ({error}); copy or download it again"
                ) from None
            for key in file.keys():  # noqa: SIM118
                part = file.get_slice(key)
                shape = tuple(part.get_shape())
                self.forms[key] = _form(part.get_dtype(), shape)
                self._files[key] = file

    def read(self, name: str) -> torch.Tensor:
        """One tensor as it is stored."""
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor


@contextmanager
def opened(folders: Sequence[Path]) -> Iterator[list[OpenCheckpoint]]:
    """Opens several checkpoints at once. Raises: ParameterAverageError."""
    with ExitStack() as stack:
        yield [OpenCheckpoint(folder, stack) for folder in folders]


def write_parameters(
    folder: Path,
    forms: Mapping[str, TensorForm],
    tensor: Callable[[str], torch.Tensor],
    *,
    progress: Progress | None = None,
) -> int:
    """Writes tensors in files of at most `FILE_BYTES`, with an index if there are several.

    In memory are, at most, the tensors of one file.

    Args:
      folder: exists.
      forms: tensor name -> its form, whose bytes decide in which file a tensor is.
      tensor: name -> the tensor; asked for once each, in order.
      progress: shows how many are done; None is silent.
    Returns: the number of bytes of all tensors.
    """
    from safetensors.torch import save_file

    stage = (progress or Progress(quiet=True)).stage("write", len(forms), "tensors")
    groups = _groups(forms)
    width = f"{len(groups):05}"
    weight_map: dict[str, str] = {}
    with stage.working():
        for number, names in enumerate(groups, start=1):
            file = PARAMETERS if len(groups) == 1 else f"model-{number:05}-of-{width}.safetensors"
            tensors = {}
            for name in names:
                tensors[name] = tensor(name).contiguous()
                stage.advance(1)
            save_file(tensors, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(names, file)
    num_bytes = sum(form.num_bytes for form in forms.values())
    if len(groups) > 1:
        index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return num_bytes


def fetched_folder(policy: Policy) -> Path:
    """The folder with a policy's files; a hub id is fetched unless it is in the hub's cache.

    Raises: ParameterAverageError if it cannot be fetched.
    """
    return hub.fetched_folder(
        policy, holds=f"{CONFIG} and {PARAMETERS}", refuse=ParameterAverageError, patterns=_FETCHED
    )


def _file_names(folder: Path) -> list[str]:
    if (folder / INDEX).exists():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return sorted(set(index["weight_map"].values()))
    if (folder / PARAMETERS).exists():
        return [PARAMETERS]
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names:
        raise ParameterAverageError(
            f"{folder} holds no {PARAMETERS}; save it with save_pretrained, as safetensors"
        )
    return names


def _form(dtype: str, shape: tuple[int, ...]) -> TensorForm:
    bits = 8 if dtype in ("BOOL", "U8", "I8") else int("".join(filter(str.isdigit, dtype))[:2])
    bits = 8 if dtype.startswith("F8") else bits
    size = 1
    for length in shape:
        size *= length
    return TensorForm(dtype=dtype, shape=shape, num_bytes=size * bits // 8)


def _groups(forms: Mapping[str, TensorForm]) -> list[list[str]]:
    """The names of each file's tensors."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, form in forms.items():
        if groups[-1] and filled + form.num_bytes > FILE_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += form.num_bytes
    return groups
