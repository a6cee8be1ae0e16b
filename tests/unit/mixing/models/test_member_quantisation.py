"""Every quantisation of this vLLM knows the layers of a member by the names of its checkpoint."""

from __future__ import annotations

import importlib
import re
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("vllm")

LEFT_OUT = "model.layers.0.mlp.down_proj"
OTHER = "model.layers.1.mlp.down_proj"
EIGHT_BITS = {"num_bits": 8, "type": "int", "symmetric": True}


def modelopt(algorithm: str, **settings: Any) -> dict[str, Any]:
    names = {"kv_cache_quant_algo": None, "exclude_modules": [LEFT_OUT]}
    return {"quantization": {"quant_algo": algorithm, **names, **settings}}


LEFT_OUT_BY: dict[str, dict[str, Any]] = {
    "fp8": {"activation_scheme": "dynamic", "modules_to_not_convert": [LEFT_OUT]},
    "fbgemm_fp8": {"activation_scale_ub": 1.0, "modules_to_not_convert": [LEFT_OUT]},
    "modelopt": modelopt("FP8"),
    "modelopt_fp4": modelopt("NVFP4", group_size=16),
    "modelopt_mxfp8": modelopt("MXFP8"),
    "awq": {
        "w_bit": 4,
        "q_group_size": 128,
        "zero_point": True,
        "modules_to_not_convert": [LEFT_OUT],
    },
    "gptq": {
        "bits": 4,
        "group_size": 128,
        "desc_act": False,
        "sym": True,
        "dynamic": {f"-:^{re.escape(LEFT_OUT)}$": {}},
    },
    "compressed-tensors": {
        "format": "int-quantized",
        "ignore": [LEFT_OUT],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**EIGHT_BITS, "strategy": "channel", "dynamic": False},
                "input_activations": {**EIGHT_BITS, "strategy": "token", "dynamic": True},
            }
        },
    },
    "inc": {
        "bits": 4,
        "group_size": 128,
        "sym": True,
        "packing_format": "auto_round:auto_gptq",
        "extra_config": {LEFT_OUT: {"bits": 16}},
    },
}
"""Method -> a file's settings that leave one layer out by its name."""

BY_A_PART_OF_THE_NAME = ("awq", "inc", "modelopt", "modelopt_fp4", "modelopt_mxfp8")
"""Methods for which any name that contains the given one is left out."""


def linear_layer() -> Any:
    linear = importlib.import_module("vllm.model_executor.layers.linear")
    layer = linear.ReplicatedLinear.__new__(linear.ReplicatedLinear)
    importlib.import_module("torch").nn.Module.__init__(layer)
    return layer


def is_quantised(config: Any, prefix: str) -> bool:
    """False if a layer's method multiplies plain matrices; a method that this CPU lacks raises."""
    linear = importlib.import_module("vllm.model_executor.layers.linear")
    base_config = importlib.import_module("vllm.model_executor.layers.quantization.base_config")
    try:
        method = base_config.resolve_quant_method(config, linear_layer(), prefix)
    except (ValueError, AssertionError, NotImplementedError, AttributeError, RuntimeError):
        return True
    return method is not None and type(method) is not linear.UnquantizedLinearMethod


def of_member(config: Any) -> Any:
    loading = importlib.import_module("prefmix.mixing.models.loading")
    return loading.member_quant_config(config, index=1)


@pytest.mark.parametrize("method", LEFT_OUT_BY)
def test_a_layer_that_a_file_leaves_out_stays_plain_in_a_member(method: str) -> None:
    quantization = importlib.import_module("vllm.model_executor.layers.quantization")
    kind = quantization.get_quantization_config(method)
    plain = kind.from_config({"quant_method": method, **LEFT_OUT_BY[method]})
    assert not is_quantised(plain, LEFT_OUT)
    assert is_quantised(plain, OTHER)
    if method not in BY_A_PART_OF_THE_NAME:
        assert is_quantised(plain, f"members.p1.{LEFT_OUT}"), "or there is nothing to do"
    member = of_member(plain)
    assert not is_quantised(member, f"members.p1.{LEFT_OUT}")
    assert is_quantised(member, f"members.p1.{OTHER}")


def test_every_quantisation_of_this_vllm_hears_the_names_of_the_checkpoint() -> None:
    """Whatever a class calls its list of layers, it compares it with the name that it is given."""
    quantization = importlib.import_module("vllm.model_executor.layers.quantization")
    assert len(quantization.QUANTIZATION_METHODS) > 25
    for method in quantization.QUANTIZATION_METHODS:
        heard: list[str] = []
        kind = quantization.get_quantization_config(method)

        def hear(self: Any, layer: Any, prefix: str, heard: list[str] = heard) -> None:
            heard.append(prefix)

        noted = type("Noted", (kind,), {"get_quant_method": hear, "__init__": lambda self: None})
        config = noted()
        config.online_quantization_config = None
        member = of_member(config)
        member.get_quant_method(object(), prefix=f"members.p1.{LEFT_OUT}")
        member.get_quant_method(object(), f"members.p1.{LEFT_OUT}")
        assert heard == [LEFT_OUT, LEFT_OUT], method


def test_layers_that_a_flag_leaves_out_stay_as_the_file_has_them() -> None:
    """vLLM's --quantization-config quantises while loading, with a list of its own."""
    arguments = importlib.import_module("vllm.config.quantization").QuantizationConfigArgs
    quantization = importlib.import_module("vllm.model_executor.layers.quantization")
    online = importlib.import_module("vllm.model_executor.layers.quantization.online.base")
    settings = {**LEFT_OUT_BY["compressed-tensors"], "ignore": [LEFT_OUT, OTHER]}
    config = quantization.get_quantization_config("compressed-tensors").from_config(settings)
    config.online_quantization_config = online.OnlineQuantizationConfig(
        arguments(linear="fp8_per_tensor", ignore=[LEFT_OUT])
    )
    assert not is_quantised(config, LEFT_OUT)
    assert is_quantised(config, OTHER)
    member = of_member(config)
    assert not is_quantised(member, f"members.p1.{LEFT_OUT}")
    assert is_quantised(member, f"members.p1.{OTHER}")
