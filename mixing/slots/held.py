"""The adapters in the slots of one rank's trunk, and the one that is being read for a slot.

An adapter is put into a slot in two steps. A thread reads its files and checks them against the
loaded layers, while the engine goes on. Then, between two steps of the engine, what was read is
copied into the slot's room. So serving waits for a copy of memory and for no file.

A worker must not raise, because that may end the engine: every answer has the failure as a text.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from prefmix.mixing.checkpoints.lora import Adapter, AdapterError, read_adapter
from prefmix.mixing.spec import Policy

Factors = dict[str, tuple[torch.Tensor, torch.Tensor] | None]
"""Per adapted layer of the base, an adapter's share on this rank; None where it changes nothing."""


class HeldAdapters:
    """The slots of one loaded SharedTrunkMixtureForCausalLM."""

    def __init__(self, model: Any, *, check: Callable[[Any, int], str | None]) -> None:
        """Args:
        check: runs the layers with the adapter at a place of `model.adapters`; returns a sentence
          about what they get wrong.
        """
        self._model = model
        self._check = check
        self._reading: _Reading | None = None
        self._kept: dict[int, tuple[Adapter | None, Factors]] = {}

    def run(self, verb: str, values: list[Any]) -> dict[str, Any]:
        """Runs a command that is done on each rank. Never raises on an adapter's fault.

        Returns: {"failure": a sentence or None, ...}.
        """
        found: dict[str, Any] = getattr(self, f"_{verb}")(*values)
        return {"failure": None, **found}

    def _read(self, name: str, folder: str) -> dict[str, Any]:
        """Begins to read an adapter; what was read before is dropped."""
        self._reading = _Reading(self._model, Policy(name=name, model=folder))
        return {}

    def _outcome(self) -> dict[str, Any]:
        """ "done" once an adapter has been read or refused; then "failure" counts, and "ranks" are
        the number of layers that it changes."""
        reading = self._reading
        if reading is None or not reading.is_done:
            return {"done": False}
        return {"done": True, "failure": reading.failure, "num_layers": reading.num_layers}

    def _put(self, slot: int) -> dict[str, Any]:
        """Copies what was read into a slot, and runs the layers with it; a slot whose layers are
        wrong is emptied again. "seconds" is how long this took."""
        reading, start = self._reading, time.perf_counter()
        assert reading is not None, "read it first"
        self._reading = None
        self._write(slot, reading.adapter, reading.factors)
        try:
            failure = self._check(self._model, self._place(slot))
        except AdapterError as error:  # the check reads the files once more
            failure = str(error)
        except Exception as error:
            failure = _sentence(reading.adapter, error)
        if failure is not None:
            self._write(slot, None, {})
        return {"failure": failure, "seconds": time.perf_counter() - start}

    def _empty(self, slot: int) -> dict[str, Any]:
        """Makes a slot the base again."""
        start = time.perf_counter()
        self._write(slot, None, {})
        return {"seconds": time.perf_counter() - start}

    @torch.inference_mode()
    def _keep(self, slot: int) -> dict[str, Any]:
        """Copies aside what a slot holds, into the host's memory, for `restore`."""
        place = self._place(slot)
        held, methods = self._model.adapters[place], self._model.adapted.items()
        factors = {} if held is None else {n: m.copy(place) for n, m in methods if m.changes(held)}
        self._kept[slot] = (held, factors)
        return {}

    def _restore(self, slot: int) -> dict[str, Any]:
        """Gives a slot what was kept of it."""
        start = time.perf_counter()
        self._write(slot, *self._kept[slot])
        return {"seconds": time.perf_counter() - start}

    def _drop(self) -> dict[str, Any]:
        """Forgets what was read and kept."""
        self._reading = None
        self._kept.clear()
        return {}

    def _place(self, slot: int) -> int:
        """A slot's place among the trunk's adapters."""
        return len(self._model.spec.adapters) + slot

    @torch.inference_mode()
    def _write(self, slot: int, adapter: Adapter | None, factors: Factors) -> None:
        place = self._place(slot)
        held = self._model.adapters[place]
        try:
            for name, method in self._model.adapted.items():
                given = factors.get(name)
                if given is not None or (held is not None and method.changes(held)):
                    method.put(place, given)
        except Exception:  # some layers are another adapter's now
            for method in self._model.adapted.values():
                method.put(place, None)
            self._model.adapters[place] = None
            raise
        self._model.adapters[place] = adapter


def _sentence(policy: Any, error: Exception) -> str:
    cause = " ".join(str(error).split()) or type(error).__name__
    return f"policy {policy.name!r}: its adapter cannot be read: {cause:.300}"


class _Reading:
    """An adapter that a thread reads and checks."""

    def __init__(self, model: Any, policy: Policy) -> None:
        self.factors: Factors = {}
        self.adapter: Adapter | None = None
        self.failure: str | None = None
        self._model = model
        self._policy = policy
        self._thread = threading.Thread(target=self._run, name="read-adapter", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    @property
    def num_layers(self) -> int:
        """Number of the base's layers that the adapter changes on this rank."""
        return len(self.factors)

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            adapter = read_adapter(self._policy)
            self._check_room(adapter)
            with adapter.opened() as read:
                self.factors = {
                    name: method.read(adapter, read, for_slot=True)
                    for name, method in self._model.adapted.items()
                    if method.changes(adapter)
                }
            self.adapter = adapter
        except AdapterError as error:
            self.failure = str(error)
        except Exception as error:  # of files and memory: a sentence, whatever it is
            self.failure = _sentence(self._policy, error)

    def _check_room(self, adapter: Adapter) -> None:
        most = self._model.spec.max_adapter_rank
        methods = self._model.adapted.values()
        refusals = {part: method.refusal for method in methods for part in method.parts}
        for part, rank in adapter.ranks.items():
            wrong = f"policy {adapter.name!r}: its adapter changes {part!r}"
            if part not in refusals:
                raise AdapterError(
                    f"{wrong}, and the base has no linear layer of that name that takes adapters: "
                    "it was trained on another model, or must be merged into the base (peft: "
                    "merge_and_unload) and served as a full checkpoint with --policy"
                )
            if rank > most:
                raise AdapterError(
                    f"{wrong} with rank {rank}, and slots have room for rank {most}; start with "
                    f"--max-adapter-rank {rank}, or train it with a lower rank"
                )
            if (refusal := refusals[part]) is not None:
                raise AdapterError(f"{wrong}: {refusal}")
