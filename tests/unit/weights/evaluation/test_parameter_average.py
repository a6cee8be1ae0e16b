"""Parameter averages as members: their overrides, and the updates of averaged adapters."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402

from prefmix.mixing.checkpoints.file_names import PARAMETERS  # noqa: E402
from prefmix.mixing.checkpoints.lora import read_adapter  # noqa: E402
from prefmix.mixing.spec import MixtureSpec, Policy  # noqa: E402
from prefmix.weights.averages.errors import ParameterAverageError  # noqa: E402
from prefmix.weights.evaluation.parameter_average import with_averages  # noqa: E402
from support.checkpoints.tiny_adapters import save_adapter, save_merged  # noqa: E402
from support.checkpoints.tiny_policies import save_policy  # noqa: E402


def _checkpoint(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    save_file(tensors, folder / PARAMETERS)
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("a card of one policy")
    return folder


def test_overrides_of_the_config_are_those_of_all_averaged(tmp_path: Path) -> None:
    def policy(name: str, number: int) -> Policy:
        folder = _checkpoint(tmp_path / name, {"a": torch.ones(2)})
        return Policy(name=name, model=str(folder), hf_overrides={"rope_theta": number})

    spec = MixtureSpec(policies=(policy("a", 5), policy("b", 5), policy("c", 6)))
    found = with_averages(spec, {"average": {"a": 0.5, "b": 0.5}}, tmp_path / "averages")
    assert found.policies[-1].hf_overrides == {"rope_theta": 5}
    with pytest.raises(ParameterAverageError, match="'a' and 'c' have different hf_overrides"):
        with_averages(spec, {"other": {"a": 0.5, "c": 0.5}}, tmp_path / "averages")


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
