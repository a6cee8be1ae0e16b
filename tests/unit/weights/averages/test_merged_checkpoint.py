"""A base with its adapters' weighted sum added, against the adapters merged one by one."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from prefmix.mixing.checkpoints.file_names import PARAMETERS  # noqa: E402
from prefmix.mixing.spec import Policy  # noqa: E402
from prefmix.weights.averages.errors import ParameterAverageError  # noqa: E402
from prefmix.weights.averages.merged_checkpoint import write_merged  # noqa: E402
from support.checkpoints.tiny_adapters import save_adapter, save_merged  # noqa: E402
from support.checkpoints.tiny_policies import build_tokenizer, save_policy  # noqa: E402

pytestmark = pytest.mark.usefixtures("vllm")


def _policy(folder: Path) -> Policy:
    return Policy(name=folder.name, model=str(folder))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_merged_checkpoint_is_the_base_and_the_weighted_updates(tmp_path: Path, kind: str) -> None:
    """GPT-2 keeps its layers transposed, and leaves the first part of their names out of files."""
    targets, config = ["q_proj", "down_proj"], {}
    if kind == "gpt2":
        targets, config = ["c_attn", "c_fc"], {"fan_in_fan_out": True}
    base = save_policy(
        tmp_path / "base",
        seed=0,
        model_type=kind,
        **({"tie_word_embeddings": True} if kind == "gpt2" else {}),
    )
    adapters = [
        save_adapter(tmp_path / "one", base, seed=1, rank=2, targets=targets, **config),
        save_adapter(
            tmp_path / "rs", base, seed=2, rank=4, targets=targets[:1], use_rslora=True, **config
        ),
    ]
    shares = dict(zip(map(_policy, adapters), (1.5, -0.75), strict=True))
    (tmp_path / "merged").mkdir()
    write_merged(tmp_path / "merged", _policy(base), shares)
    start = AutoModelForCausalLM.from_pretrained(base).state_dict()
    expected = {name: tensor.double() for name, tensor in start.items()}
    for adapter, share in zip(adapters, shares.values(), strict=True):
        alone = save_merged(tmp_path / f"{adapter.name}-merged", base, adapter)
        for name, tensor in AutoModelForCausalLM.from_pretrained(alone).state_dict().items():
            expected[name] += share * (tensor.double() - start[name].double())
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    changed = [name for name in start if not torch.equal(found[name], start[name])]
    assert len(changed) == 4
    for name, tensor in found.items():
        assert (tensor.double() - expected[name]).abs().max() < 2e-6, name


def test_dtype_of_the_base_is_kept_and_no_adapters_give_the_base(tmp_path: Path) -> None:
    base = save_policy(tmp_path / "base", seed=0)
    tensors = {name: t.bfloat16() for name, t in load_file(base / PARAMETERS).items()}
    save_file(tensors, base / PARAMETERS, metadata={"format": "pt"})
    adapter = save_adapter(tmp_path / "one", base, seed=1, targets=["k_proj"])
    for name, shares in (("some", {_policy(adapter): 1.0}), ("none", {})):
        (tmp_path / name).mkdir()
        write_merged(tmp_path / name, _policy(base), shares)
    some, none = (load_file(tmp_path / name / PARAMETERS) for name in ("some", "none"))
    assert {tensor.dtype for tensor in some.values()} == {torch.bfloat16}
    assert all(torch.equal(none[name], tensor) for name, tensor in tensors.items())
    name = "model.layers.1.self_attn.k_proj.weight"
    factors = load_file(adapter / "adapter_model.safetensors")
    stem = f"base_model.model.{name.removesuffix('.weight')}"
    product = factors[f"{stem}.lora_B.weight"].double() @ factors[f"{stem}.lora_A.weight"].double()
    exact = tensors[name].double() + 2 * product
    assert (some[name].double() - exact).abs().max() <= 2**-8 * exact.abs().max()


def test_tokenizer_beside_an_adapter_replaces_that_of_the_base(tmp_path: Path) -> None:
    base = save_policy(tmp_path / "base", seed=0)
    (base / "generation_config.json").write_text('{"temperature": 0.25, "do_sample": true}')
    adapter = save_adapter(tmp_path / "one", base, seed=1)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "of the adapter"
    tokenizer.save_pretrained(adapter)
    (tmp_path / "merged").mkdir()
    write_merged(
        tmp_path / "merged", _policy(base), {_policy(adapter): 1.0}, text_from=_policy(adapter)
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == "of the adapter"
    kept = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert kept["temperature"] == 0.25


def test_layers_that_the_files_do_not_have_are_refused(tmp_path: Path) -> None:
    base = save_policy(tmp_path / "base", seed=0)
    adapter = save_adapter(tmp_path / "one", base, seed=1, targets=["q_proj"])
    shorter = save_policy(tmp_path / "shorter", seed=0, layers=1)
    (tmp_path / "merged").mkdir()
    with pytest.raises(
        ParameterAverageError, match=r"no tensor model\.layers\.1\.self_attn\.q_proj"
    ):
        write_merged(tmp_path / "merged", _policy(shorter), {_policy(adapter): 1.0})
    wider = save_policy(tmp_path / "wider", seed=0, hidden=128)
    with pytest.raises(ParameterAverageError, match="belong to another base"):
        write_merged(tmp_path / "merged", _policy(wider), {_policy(adapter): 1.0})
