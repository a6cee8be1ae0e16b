"""The weighted sum of adapters: exact by its factors, or the nearest of a rank, and its config."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402

from prefmix.mixing.checkpoints.file_names import PARAMETERS  # noqa: E402
from prefmix.mixing.checkpoints.lora import read_adapter  # noqa: E402
from prefmix.mixing.spec import Policy  # noqa: E402
from prefmix.weights.averages.adapter_sum import (  # noqa: E402
    Update,
    opened_sum,
    truncated,
    write_adapter_average,
)
from prefmix.weights.averages.errors import ParameterAverageError  # noqa: E402
from support.checkpoints.tiny_adapters import save_adapter, save_merged  # noqa: E402
from support.checkpoints.tiny_policies import save_policy  # noqa: E402

pytestmark = pytest.mark.usefixtures("vllm")


def _random(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_truncated_update_is_the_nearest_of_its_rank() -> None:
    """Against the singular values of the whole product, in float64."""
    generator = torch.Generator().manual_seed(3)
    a, b = _random(generator, 9, 40), _random(generator, 25, 9) * torch.logspace(0, -3, 9)
    update = Update(a.float(), b.float())
    exact = b @ a
    left, values, right = torch.linalg.svd(exact, full_matrices=False)
    for rank in (1, 4, 8):
        found = truncated(update, rank)
        nearest = (left[:, :rank] * values[:rank]) @ right[:rank]
        product = found.lora_b.double() @ found.lora_a.double()
        assert found.rank == rank
        assert (product - nearest).norm() < 1e-6 * exact.norm()
        assert found.error == pytest.approx(
            float((product - exact).norm() / exact.norm()), abs=1e-6
        )
        assert found.error == pytest.approx(float(values[rank:].norm() / values.norm()), rel=1e-3)
    assert truncated(update, 9) is update


def test_ranks_above_the_layers_size_and_updates_of_nothing_are_cut() -> None:
    """The sum of ranks may exceed both sides of a layer, and an untrained adapter's B is zero."""
    generator = torch.Generator().manual_seed(0)
    wide = Update(_random(generator, 12, 4).float(), _random(generator, 6, 12).float())
    found = truncated(wide, 8)
    assert found.rank <= 8
    assert found.error < 1e-7
    exact = wide.lora_b.double() @ wide.lora_a.double()
    assert (found.lora_b.double() @ found.lora_a.double() - exact).norm() < 1e-6 * exact.norm()
    zero = truncated(Update(_random(generator, 4, 8).float(), torch.zeros(8, 4)), 2)
    assert (zero.error, bool(zero.lora_b.any())) == (0.0, False)


def test_config_of_the_sum_says_nothing_of_one_adapters_layers(tmp_path: Path) -> None:
    """Depths that one adapter's config selects must not select among the sum's layers."""
    base = save_policy(tmp_path / "base", seed=0)
    one = save_adapter(tmp_path / "one", base, seed=1, rank=2, targets=["q_proj", "up_proj"])
    other = save_adapter(
        tmp_path / "other", base, seed=2, rank=3, layers=[1], layers_to_transform=[1]
    )
    shares = {Policy(name=each.name, model=str(each)): 0.5 for each in (other, one)}
    (tmp_path / "sum").mkdir()
    written = write_adapter_average(tmp_path / "sum", shares, base="the-base")
    config = json.loads((tmp_path / "sum" / "adapter_config.json").read_text())
    assert (written.rank, config["r"], config["lora_alpha"]) == (5, 5, 5)
    assert config["base_model_name_or_path"] == "the-base"
    assert "layers_to_transform" not in config
    assert config["rank_pattern"]["model.layers.0.self_attn.q_proj"] == 2
    found = read_adapter(Policy(name="sum", model=str(tmp_path / "sum")))
    assert found.ranks["model.layers.1.self_attn.q_proj"] == 5
    assert len(found.ranks) == 9
    (tmp_path / "cut").mkdir()
    cut = write_adapter_average(tmp_path / "cut", shares, rank=2)
    assert cut.rank == 2
    assert cut.errors["model.layers.0.self_attn.q_proj"] == 0
    assert 0 < cut.errors["model.layers.1.self_attn.q_proj"] < 1


def test_adapters_of_different_bases_have_no_sum(tmp_path: Path) -> None:
    adapters = [
        save_adapter(
            tmp_path / f"adapter-{hidden}",
            save_policy(tmp_path / f"base-{hidden}", seed=0, hidden=hidden),
            seed=1,
        )
        for hidden in (64, 128)
    ]
    shares = {Policy(name=each.name, model=str(each)): 0.5 for each in adapters}
    with opened_sum(shares) as total, pytest.raises(ParameterAverageError, match="different bases"):
        total.update(total.modules[0])


def test_average_of_adapters_is_that_of_their_updates(tmp_path: Path) -> None:
    """Ranks, scalings and layers differ; what the shares lack of 1 is the base's."""
    base = save_policy(tmp_path / "base", seed=0)
    adapters = [
        save_adapter(tmp_path / "plain", base, seed=1, rank=2),
        save_adapter(tmp_path / "rs", base, seed=2, rank=4, use_rslora=True, targets=["q_proj"]),
        save_adapter(tmp_path / "last", base, seed=3, rank_pattern={"k_proj": 3}, layers=[1]),
    ]
    shares = {"plain": 0.25, "rs": 0.5, "last": 0.125}
    (tmp_path / "soup").mkdir()
    write_adapter_average(
        tmp_path / "soup",
        {Policy(name=each.name, model=str(each)): shares[each.name] for each in adapters},
    )
    start = load_file(base / PARAMETERS)
    expected = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
    for adapter in adapters:
        merged = load_file(save_merged(tmp_path / f"{adapter.name}-m", base, adapter) / PARAMETERS)
        for name, tensor in merged.items():
            expected[name] += shares[adapter.name] * (tensor - start[name])
    soup = read_adapter(Policy(name="soup", model=str(tmp_path / "soup")))
    with soup.opened() as read:
        for module in soup.ranks:
            factors = read(module)
            update = factors.scaling * factors.lora_b @ factors.lora_a
            assert torch.allclose(update, expected.pop(f"{module}.weight"), atol=1e-5), module
    assert not any(update.any() for update in expected.values())
