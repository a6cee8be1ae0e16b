"""Parameter averages as members: their overrides."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import save_file  # noqa: E402

from prefmix.mixing.checkpoints.file_names import PARAMETERS  # noqa: E402
from prefmix.mixing.spec import MixtureSpec, Policy  # noqa: E402
from prefmix.weights.averages.errors import ParameterAverageError  # noqa: E402
from prefmix.weights.evaluation.parameter_average import with_averages  # noqa: E402


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
