"""Counts what a function would launch on a GPU, and the bytes that it would move."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

VIEWS = {
    "view", "_unsafe_view", "split", "split_with_sizes", "slice", "select", "unsqueeze", "squeeze",
    "expand", "t", "transpose", "permute", "detach", "alias", "as_strided", "unbind", "narrow",
    "empty", "new_empty", "empty_like", "empty_strided", "_reshape_alias", "lift_fresh",
}  # fmt: skip
"""Operations of torch that launch nothing."""


def count(run: Callable[[], dict[str, int]]) -> dict[str, int]:
    """The operations that launch kernels, by name, and those that the function counts itself."""
    own, found, _moved = watched(run)
    return dict(sorted((found + Counter(own)).items()))


def bytes_of(run: Callable[[], dict[str, int]]) -> int:
    """Bytes of the tensors that the launched operations take and give."""
    return watched(run)[2]


def watched(run: Callable[[], dict[str, int]]) -> tuple[dict[str, int], Counter[str], int]:
    """The function's answer, its launched operations by name, and the bytes that they move."""
    from torch import is_tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Watching(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.found: Counter[str] = Counter()
            self.moved = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            name = func._schema.name.rpartition("::")[2]
            given = func(*args, **(kwargs or {}))
            if name not in VIEWS:
                self.found[name] += 1
                tensors = [each for each in tree_leaves([args, kwargs, given]) if is_tensor(each)]
                self.moved += sum(each.numel() * each.element_size() for each in tensors)
            return given

    with Watching() as watching:
        own = run()
    return own, watching.found, watching.moved
