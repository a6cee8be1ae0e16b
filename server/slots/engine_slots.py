"""The slots of all engines of this server: adapters are read, tried and put into them.

All engines of a data-parallel group are told the same. What one of them refuses is in none.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

from prefmix.mixing import wire
from prefmix.mixing.spec import MixtureSpec
from prefmix.mixing.ways_to_mix import Mixing

_LOOK_S = 0.02
"""Interval between two looks for an adapter that is being read."""

_NUM_TOKENS = 2

MIXED = ""
"""Key of a slot whose content is not the same in all engines."""


class PolicyRefusedError(ValueError):
    """A policy that the engine cannot serve; the text is one sentence."""


class EngineSlots:
    """The command of prefmix.mixing.slots.commands, and a check by tokens."""

    def __init__(self, engine_client: Any, spec: MixtureSpec) -> None:
        """Args:
        engine_client: vLLM's, before anything wraps it.
        spec: the engine's mixture.
        """
        self._client = engine_client
        self._generate: Callable[..., Any] = engine_client.generate
        self._spec = spec

    async def keys(self) -> list[str | None]:
        """The key of each slot's content: None for the base itself, MIXED if engines differ."""
        found = [each["keys"] for each in await self._tell_all("keys")]
        return [keys[0] if len(set(keys)) == 1 else MIXED for keys in zip(*found, strict=True)]

    async def clear(self, slot: int) -> float:
        """Makes a slot that no request uses the base itself, unless it is.

        Returns: the longest time that an engine stood still for it, in seconds.
        Raises: PolicyRefusedError if a request uses it.
        """
        if (await self.keys())[slot] is None:
            return 0.0
        return max(float(each["seconds"]) for each in await self._tell("empty", slot))

    async def keep(self, slot: int) -> None:
        """Makes the engines copy aside what a slot holds, until `drop`.

        Raises: PolicyRefusedError if a request uses it.
        """
        await self._tell("keep", slot)

    async def restore(self, slot: int, key: str | None) -> None:
        """Gives a slot that no request uses what was kept of it. Args: key: that it had."""
        await self._tell("restore", slot, key)

    async def read(self, name: str, folder: str) -> None:
        """Makes the engines read an adapter, and waits until they have.

        Raises: PolicyRefusedError.
        """
        await self._tell("read", name, folder)
        while not all(each["done"] for each in await self._tell("outcome")):
            await asyncio.sleep(_LOOK_S)

    async def drop(self) -> None:
        """Makes the engines forget what they have read and kept."""
        await self._tell("drop")

    async def put(self, slot: int, name: str, folder: str, *, key: str) -> float:
        """Reads an adapter, puts it into a slot that no request uses, and draws tokens with it.

        Args:
          key: names the content.
        Returns: the longest time that an engine stood still for it, in seconds.
        Raises: PolicyRefusedError; the slot has no content then.
        """
        await self.read(name, folder)
        try:
            found = await self._tell("put", slot, key)
            await self._draw(slot, name)
        except BaseException:
            await asyncio.shield(self._tell_all("empty", slot))
            raise
        return max(float(each["seconds"]) for each in found)

    async def _draw(self, slot: int, name: str) -> None:
        """Draws tokens with the slot alone, as a client's request does, in each engine; mixes
        parameters for a slot without KV cache."""
        from vllm import SamplingParams

        weights = [0.0] * self._spec.num_members
        weights[self._spec.slot_members[slot]] = 1.0
        mixing: Mixing = "logits" if self._spec.has_kv(slot) else "parameters"
        size = self._client.vllm_config.model_config.get_vocab_size()
        prompt = [(index + 1) * size // 8 for index in range(4)]
        for rank in self._client.engine_core.engine_ranks_managed:
            params = SamplingParams(
                max_tokens=_NUM_TOKENS,
                temperature=0.0,
                ignore_eos=True,
                detokenize=False,
                extra_args=wire.to_extra_args(weights, mixing),
            )
            outputs = self._generate(
                {"prompt_token_ids": prompt},
                params,
                f"prefmix-slot-{uuid.uuid4().hex}",
                data_parallel_rank=rank,
            )
            async for output in outputs:
                for answer in output.outputs:
                    if wire.failed_policies(answer.finish_reason, answer.stop_reason):
                        raise PolicyRefusedError(
                            f"policy {name!r} computes NaN or infinity where the logits of a token "
                            "should be; check its adapter, and that it was trained on this base"
                        )

    async def _tell(self, verb: str, *values: Any) -> list[dict[str, Any]]:
        found = await self._tell_all(verb, *values)
        for each in found:
            if each["failure"] is not None:
                raise PolicyRefusedError(each["failure"])
        return found

    async def _tell_all(self, verb: str, *values: Any) -> list[dict[str, Any]]:
        core = self._client.engine_core
        found: list[dict[str, Any]] = await core.call_utility_all_async(
            wire.SLOT_METHOD, verb, list(values)
        )
        return found
