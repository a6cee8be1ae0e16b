"""This rank's share of a linear layer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("vllm")


def test_places_of_rows_are_on_the_host_while_vllm_builds_the_model_on_a_device() -> None:
    """Factors of an adapter are read into the host's memory, and put in order there."""
    from prefmix.mixing.models.layer_shards import rows_by_order

    layer: Any = SimpleNamespace(output_partition_sizes=[4, 2, 2])
    with torch.device("meta"):
        for place, here in ((None, range(8)), (0, range(4)), (2, range(6, 8))):
            rows = rows_by_order(layer, place)
            assert {rows.here.device.type, rows.there.device.type} == {"cpu"}
            assert rows.here.tolist() == list(here)
            assert rows.there.tolist() == list(range(len(here)))
