"""The parameter average of full checkpoints: the numbers, the files beside them, the refusals."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from prefmix.mixing.checkpoints.file_names import INDEX, PARAMETERS  # noqa: E402
from prefmix.mixing.spec import Policy  # noqa: E402
from prefmix.weights.averages import checkpoint_files  # noqa: E402
from prefmix.weights.averages.checkpoint_average import write_average  # noqa: E402
from prefmix.weights.averages.errors import ParameterAverageError  # noqa: E402
from prefmix.weights.engines.progress import Progress  # noqa: E402
from support.checkpoints.tiny_policies import save_policy  # noqa: E402


def _checkpoint(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    save_file(tensors, folder / PARAMETERS)
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("a card of one policy")
    return folder


def _average(folder: Path, shares: Mapping[Path, float], **options: Any) -> Path:
    folder.mkdir()
    policies = {Policy(name=each.name, model=str(each)): share for each, share in shares.items()}
    write_average(folder, policies, **options)
    return folder


def test_average_is_that_of_the_tensors_as_they_are_stored(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    folders = [
        _checkpoint(tmp_path / str(i), {"a": torch.randn(8, 4, generator=generator).bfloat16()})
        for i in range(3)
    ]
    shares = dict(zip(folders, (0.2, 0.5, 0.3), strict=True))
    average = _average(tmp_path / "average", shares)
    stored = [load_file(folder / PARAMETERS)["a"].double() for folder in folders]
    expected = sum(share * tensor for share, tensor in zip(shares.values(), stored, strict=True))
    found = load_file(average / PARAMETERS)["a"]
    assert found.dtype == torch.bfloat16
    assert (found.double() - expected).abs().max() <= 2**-8 * expected.abs().max()
    assert {path.name for path in average.iterdir()} == {PARAMETERS, "config.json"}
    alone = _average(tmp_path / "alone", {folders[1]: 1.0})
    assert torch.equal(load_file(alone / PARAMETERS)["a"].double(), stored[1])


def test_shards_are_read_together(tmp_path: Path) -> None:
    whole = _checkpoint(tmp_path / "whole", {"a": torch.ones(2), "b": torch.zeros(3)})
    shards = tmp_path / "shards"
    shards.mkdir()
    save_file({"a": torch.zeros(2)}, shards / "model-1.safetensors")
    save_file({"b": torch.ones(3)}, shards / "model-2.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    (shards / "config.json").write_text("{}")
    average = _average(tmp_path / "average", {shards: 0.75, whole: 0.25})
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
        _average(tmp_path / "average", {first: 0.5, second: 0.5})
    assert not any((tmp_path / "average").iterdir())
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    with pytest.raises(ParameterAverageError, match=r"holds no model\.safetensors"):
        _average(tmp_path / "other", {first: 0.5, empty: 0.5})


def _configured(folder: Path, number: float = 1.0, **config: Any) -> Path:
    _checkpoint(folder, {"a": torch.full((2,), number)})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return folder


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rms_norm_eps": 0.5}, "differ in 'rms_norm_eps'"),
        ({"num_attention_heads": 16}, "differ in 'head_dim'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "'other' is quantised"),
    ],
)
def test_policies_that_compute_other_functions_have_no_average(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    """Their tensors have equal names and shapes, so that nothing else would show it."""
    first, other = _configured(tmp_path / "first"), _configured(tmp_path / "other", **config)
    with pytest.raises(ParameterAverageError, match=message):
        _average(tmp_path / "average", {first: 0.5, other: 0.5})


def test_differences_that_compute_nothing_else_are_allowed(tmp_path: Path) -> None:
    """Entries that a file leaves to the defaults, special tokens, and the name of its dtype."""
    first = _configured(tmp_path / "first", eos_token_id=5, dtype="float32")
    other = _configured(
        tmp_path / "other", 3.0, rms_norm_eps=1e-06, eos_token_id=7, use_cache=False
    )
    average = _average(tmp_path / "average", {first: 0.5, other: 0.5})
    assert load_file(average / PARAMETERS)["a"].tolist() == [2.0, 2.0]


def test_tables_are_copied_and_numbers_out_of_range_are_refused(tmp_path: Path) -> None:
    def policy(name: str, value: float, table: int = 3) -> Path:
        tensors = {"a": torch.tensor([value]).half(), "table": torch.tensor([table])}
        return _checkpoint(tmp_path / name, tensors)

    first, other = policy("first", 1.0), policy("other", 2.0)
    found = load_file(_average(tmp_path / "average", {first: 3.0, other: -2.0}) / PARAMETERS)
    assert (found["a"].tolist(), found["table"].tolist()) == ([-1.0], [3])
    with pytest.raises(ParameterAverageError, match=r"'a' is not finite in torch\.float16"):
        _average(tmp_path / "large", {first: 1.0, policy("huge", 6e4): 2.0})
    with pytest.raises(ParameterAverageError, match=r"differ in 'table'.*int64 and have no"):
        _average(tmp_path / "tables", {first: 0.5, policy("odd", 1.0, table=4): 0.5})


def test_text_comes_from_the_model_that_is_named(tmp_path: Path) -> None:
    """Also from one without a share; the layers' config stays that of the averaged policies."""
    first = save_policy(tmp_path / "first", seed=1)
    other = save_policy(tmp_path / "other", seed=2)
    text = save_policy(tmp_path / "text", seed=3, layers=1, eos_token_id=7)
    tokenizer = AutoTokenizer.from_pretrained(text)
    tokenizer.chat_template = "{{ messages[0].content }}!"
    tokenizer.save_pretrained(text)
    (text / "generation_config.json").write_text('{"eos_token_id": [7, 9], "temperature": 0.5}')
    (first / "chat_template.jinja").write_text("of the first")
    (first / "optimizer.pt").write_bytes(b"0")
    policy = Policy(name="text", model=str(text))
    average = _average(tmp_path / "average", {first: 0.5, other: 0.5}, text_from=policy)
    assert AutoTokenizer.from_pretrained(average).chat_template == "{{ messages[0].content }}!"
    model = AutoModelForCausalLM.from_pretrained(average)
    assert (model.config.num_hidden_layers, model.config.eos_token_id) == (2, 7)
    assert model.generation_config.eos_token_id == [7, 9]
    assert not list(average.glob("*.pt"))


def test_overrides_are_written_or_refused(tmp_path: Path) -> None:
    """One that transformers reads from elsewhere in the file would change nothing there."""
    folder = save_policy(tmp_path / "policy", seed=1)

    def written(name: str, overrides: dict[str, Any]) -> dict[str, Any]:
        policy = Policy(name="policy", model=str(folder), hf_overrides=overrides)
        (tmp_path / name).mkdir()
        write_average(tmp_path / name, {policy: 1.0}, with_overrides=True)
        return json.loads((tmp_path / name / "config.json").read_text())

    assert written("one", {"rms_norm_eps": 0.25})["rms_norm_eps"] == 0.25
    with pytest.raises(ParameterAverageError, match="hf_overrides of policy 'policy' cannot be"):
        written("two", {"rope_theta": 5.0})


def test_parts_of_a_large_average_make_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [save_policy(tmp_path / name, seed=i) for i, name in enumerate("ab")]
    shares = dict(zip(folders, (1.5, -0.5), strict=True))
    whole = _average(tmp_path / "whole", shares)
    monkeypatch.setattr(checkpoint_files, "FILE_BYTES", 2**16)
    parts = _average(tmp_path / "parts", shares)
    files = sorted(path.name for path in parts.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((parts / INDEX).read_text())
    assert set(index["weight_map"].values()) == set(files)
    expected = load_file(whole / PARAMETERS)
    found = AutoModelForCausalLM.from_pretrained(parts).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_terminal_shows_how_many_tensors_are_done(tmp_path: Path) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    one = _checkpoint(tmp_path / "one", {"a": torch.zeros(2), "b": torch.zeros(3)})
    shown = Terminal()
    _average(tmp_path / "average", {one: 1.0}, progress=Progress(shown))
    assert "write" in shown.getvalue()
    assert "2/2 tensors" in shown.getvalue()
