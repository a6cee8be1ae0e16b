"""`prefmix fit` and the way to mix: what is fitted, what the profile says, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from prefmix.mixing.spec import Policy
from prefmix.server.cli import fit
from prefmix.server.cli.main import main
from prefmix.weights.store.store import WeightsStore
from support.fit.toy_engine import ToyEngine


@pytest.mark.parametrize(
    ("words", "served", "found"),
    [
        ([], "logits", None),
        ([], "parameters", "parameters"),
        (["--mixing", "parameters"], "logits", "parameters"),
        (["--mixing", "logits"], "parameters", "logits"),
    ],
)
def test_the_profile_is_mixed_as_it_was_fitted(
    words: list[str],
    served: str,
    found: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The default is what the server does; a profile says so if others do otherwise."""
    toy = ToyEngine(num_policies=2, num_prompts=6)
    base = Policy(name="reference", model="base")
    toy.spec = replace(toy.spec, reference=base, base="base", mixing=served)
    hashes = dict.fromkeys(toy.spec.member_names, "hash")
    monkeypatch.setattr(fit, "_engine", lambda *_: (lambda: toy, toy.spec, hashes))
    monkeypatch.setattr("prefmix.weights.report.plots._DPI", 40)
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"id": prompt.id, "prompt": prompt.text} for prompt in toy.prompts]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "weights.json"
    flags = ["--prompts", str(prompts), "--output", str(output), "--cache", str(tmp_path)]
    few = ["--responses", "4", "--rounds", "2"]
    assert main(["fit", "--server", "http://127.0.0.1:9", *flags, *few, *words]) == 0
    stored = WeightsStore(output).read()
    assert stored.mixings.get("fitted") == found
    told = "mixture of parameters" in capsys.readouterr().out
    assert told == ((found or served) == "parameters")
    settings = stored.provenance["fitted"]["settings"]
    assert settings["mixing"] == (found or served)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--scores", "x.parquet", "--mixing", "parameters"], 2, "--scores has no engine"),
        (["--prompts", "PROMPTS", "--mixing", "sum"], 2, "invalid choice: 'sum'"),
        (
            ["policies/demo/serve.yaml", "--prompts", "PROMPTS", "--mixing", "parameters"],
            1,
            "--mixing parameters: full checkpoints have no parameters to mix by request",
        ),
    ],
)
def test_what_cannot_be_fitted_is_one_sentence(
    words: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "hello"}\n')
    given = [str(prompts) if word == "PROMPTS" else word for word in words]
    assert main(["fit", *given, "--output", str(tmp_path / "w.json")]) == code
    error = capsys.readouterr().err
    assert message in error
    assert not (tmp_path / "w.json").exists()
