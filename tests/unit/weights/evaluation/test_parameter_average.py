"""Parameter averages: of full checkpoints in one file or several, and of adapters' updates."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402

from prefmix.mixing.checkpoints.lora import read_adapter  # noqa: E402
from prefmix.mixing.spec import MixtureSpec, Policy  # noqa: E402
from prefmix.weights.evaluation.parameter_average import (  # noqa: E402
    PARAMETERS,
    ParameterAverageError,
    with_averages,
    write_average,
)
from support.checkpoints.tiny_adapters import save_adapter, save_merged  # noqa: E402
from support.checkpoints.tiny_policies import save_policy  # noqa: E402


def _checkpoint(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    save_file(tensors, folder / PARAMETERS)
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("a card of one policy")
    return folder


def test_average_is_that_of_the_tensors_as_they_are_stored(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    folders = [
        _checkpoint(tmp_path / str(i), {"a": torch.randn(8, 4, generator=generator).bfloat16()})
        for i in range(3)
    ]
    shares = dict(zip(folders, (0.2, 0.5, 0.3), strict=True))
    average = write_average(tmp_path / "average", shares)
    stored = [load_file(folder / PARAMETERS)["a"].double() for folder in folders]
    expected = sum(share * tensor for share, tensor in zip(shares.values(), stored, strict=True))
    found = load_file(average / PARAMETERS)["a"]
    assert found.dtype == torch.bfloat16
    assert (found.double() - expected).abs().max() <= 2**-8 * expected.abs().max()
    assert {path.name for path in average.iterdir()} == {PARAMETERS, "config.json"}
    alone = write_average(tmp_path / "alone", {folders[1]: 1.0})
    assert torch.equal(load_file(alone / PARAMETERS)["a"].double(), stored[1])


def test_overrides_of_the_config_are_those_of_all_averaged(tmp_path: Path) -> None:
    def policy(name: str, number: int) -> Policy:
        folder = _checkpoint(tmp_path / name, {"a": torch.ones(2)})
        return Policy(name=name, model=str(folder), hf_overrides={"rope_theta": number})

    spec = MixtureSpec(policies=(policy("a", 5), policy("b", 5), policy("c", 6)))
    found = with_averages(spec, {"average": {"a": 0.5, "b": 0.5}}, tmp_path / "averages")
    assert found.policies[-1].hf_overrides == {"rope_theta": 5}
    with pytest.raises(ParameterAverageError, match="'a' and 'c' have different hf_overrides"):
        with_averages(spec, {"other": {"a": 0.5, "c": 0.5}}, tmp_path / "averages")


def test_shards_are_read_together(tmp_path: Path) -> None:
    whole = _checkpoint(tmp_path / "whole", {"a": torch.ones(2), "b": torch.zeros(3)})
    shards = tmp_path / "shards"
    shards.mkdir()
    save_file({"a": torch.zeros(2)}, shards / "model-1.safetensors")
    save_file({"b": torch.ones(3)}, shards / "model-2.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    average = write_average(tmp_path / "average", {shards: 0.75, whole: 0.25})
    found = load_file(average / PARAMETERS)
    assert (found["a"].tolist(), found["b"].tolist()) == ([0.25] * 2, [0.75] * 3)
    assert not (average / "model.safetensors.index.json").exists()


@pytest.mark.parametrize(
    "other",
    [{"a": torch.zeros(2, 2), "b": torch.zeros(1)}, {"a": torch.zeros(3)}, {"c": torch.zeros(3)}],
)
def test_policies_of_other_tensors_have_no_average(
    tmp_path: Path, other: dict[str, torch.Tensor]
) -> None:
    first = _checkpoint(tmp_path / "first", {"a": torch.zeros(3), "b": torch.zeros(1)})
    second = _checkpoint(tmp_path / "second", other)
    with pytest.raises(ParameterAverageError, match="have no average"):
        write_average(tmp_path / "average", {first: 0.5, second: 0.5})
    assert not (tmp_path / "average").exists()
    with pytest.raises(ParameterAverageError, match=r"holds no model\.safetensors"):
        write_average(tmp_path / "average", {first: 0.5, tmp_path: 0.5})


def test_average_of_adapters_is_that_of_their_updates(tmp_path: Path) -> None:
    """Ranks, scalings and layers differ; the reference is the base, whose update is nothing."""
    pytest.importorskip("vllm")
    base = save_policy(tmp_path / "base", seed=0)
    adapters = [
        save_adapter(tmp_path / "plain", base, seed=1, rank=2),
        save_adapter(tmp_path / "rs", base, seed=2, rank=4, use_rslora=True, targets=["q_proj"]),
        save_adapter(tmp_path / "last", base, seed=3, rank_pattern={"k_proj": 3}, layers=[1]),
    ]
    spec = MixtureSpec(
        policies=tuple(Policy(name=each.name, model=str(each)) for each in adapters),
        base=str(base),
        reference=Policy(name="reference", model=str(base)),
    )
    shares = {"plain": 0.25, "rs": 0.5, "last": 0.125, "reference": 0.125}
    wider = with_averages(spec, {"soup": shares}, tmp_path / "averages")
    assert wider.policy_names == ("plain", "rs", "last", "soup")
    start = load_file(base / PARAMETERS)
    expected = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
    for adapter in adapters:
        merged = load_file(save_merged(tmp_path / f"{adapter.name}-m", base, adapter) / PARAMETERS)
        for name, tensor in merged.items():
            expected[name] += shares[adapter.name] * (tensor - start[name])
    soup = read_adapter(wider.policies[-1])
    with soup.opened() as read:
        for module in soup.ranks:
            factors = read(module)
            update = factors.scaling * factors.lora_b @ factors.lora_a
            assert torch.allclose(update, expected.pop(f"{module}.weight"), atol=1e-5), module
    assert not any(update.any() for update in expected.values())
