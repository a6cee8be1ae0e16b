"""Fit and evaluation over real engines: the commands, and a running server over HTTP."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefmix.weights.engines.errors import EngineError
from prefmix.weights.engines.prompts import Prompt
from prefmix.weights.engines.remote import RemoteEngine
from prefmix.weights.evaluation.pairwise_judges import ChatJudge, in_both_orders
from prefmix.weights.store.format import parse
from support.engines import AdaptedBase
from support.fit.engine_law import PROMPTS, check_engine, mixture
from support.preloaded_server import Preloaded
from support.server_process import ServerProcess, run_prefmix


@pytest.fixture(scope="module")
def server(
    policies: list[Path], tmp_path_factory: pytest.TempPathFactory, preloaded: Preloaded
) -> Iterator[ServerProcess]:
    spec = mixture(policies)
    words = [f"--policy={member.name}={member.model}" for member in spec.policies]
    assert spec.reference is not None
    words.append(f"--reference=reference={spec.reference.model}")
    flags = ["--", "--dtype", "float32", "--enforce-eager", "--max-model-len", "1024"]
    running = ServerProcess(tmp_path_factory.mktemp("fit"), [*words, *flags], preloaded=preloaded)
    try:
        yield running.wait_ready()
        assert running.end(signal.SIGTERM) == 0
    finally:
        running.process.kill()


def test_a_running_server_samples_and_scores_exactly(
    server: ServerProcess, policies: list[Path]
) -> None:
    remote = RemoteEngine(server.url)
    assert remote.spec == mixture(policies)
    check_engine(remote, policies)


def test_fit_command_writes_a_store_that_serves(
    server: ServerProcess, tmp_path: Path, preloaded: Preloaded
) -> None:
    """Both samplers against a running server, from the command line, into one store."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt.text}) + "\n" for prompt in PROMPTS))
    output = tmp_path / "weights.json"
    for number, (sampler, few) in enumerate(
        {"mixture": "rounds", "reference": "restarts"}.items(), 1
    ):
        done = run_prefmix(
            *("fit", "--server", server.url, "--prompts", str(prompts), "--sampler", sampler),
            *("--output", str(output), "--cache", str(tmp_path / "cache")),
            *("--profile", sampler, "--report", str(tmp_path / f"{sampler}-report")),
            *("--responses", "4", "--max-tokens", "5", f"--{few}", "2"),
            preloaded=preloaded,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        profiles = parse(output.read_text(), source="output")
        assert (profiles.version, profiles.default) == (number, "mixture")
        assert len(profiles.profiles) == number
        assert sum(profiles.profiles[sampler]) == pytest.approx(1)
        assert profiles.provenance[sampler]["policies"].keys() == {"one", "two", "reference"}
        said = ("version 1, profile 'mixture'", "version 1 -> 2, profile 'reference'")
        assert said[number - 1] in done.stdout
        assert (tmp_path / f"{sampler}-report" / "report.html").exists()


def test_a_real_endpoint_judges_pairs(server: ServerProcess) -> None:
    """Any of its words is a verdict or none; what it refuses is told in its own words."""
    url = f"{server.url}/v1"
    prompts = [Prompt(id="0", text="a b")] * 4
    judge = ChatJudge(url, model="prefmix", criterion="kind")
    found = in_both_orders(judge, prompts, ["a", "b", "a b", ""], ["b", "a", "c", "d"])
    assert len(found) == 4
    assert set(found) <= {None, 0.0, 0.25, 0.5, 0.75, 1.0}
    other = ChatJudge(url, model="no-such-model", criterion="kind")
    with pytest.raises(EngineError, match=r"404: .*no-such-model"):
        other(prompts[:1], ["a"], ["b"])
    with pytest.raises(EngineError, match=r"400: .*(context|token)"):
        judge(prompts[:1], ["a b " * 2000], ["b"])


REWARDS = [f"--reward={name}=prefmix.policies.demo.judges:{name}" for name in ("concise", "polite")]


def evaluation(tmp_path: Path, preloaded: Preloaded, *words: str) -> dict[str, dict[str, Any]]:
    """Runs `prefmix eval`; returns the rows of its numbers by name."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt.text}) + "\n" for prompt in PROMPTS))
    output = tmp_path / "found.json"
    done = run_prefmix(
        *("eval", "--prompts", str(prompts), *REWARDS, "--responses", "6", "--max-tokens", "6"),
        *("--output", str(output), "--cache", str(tmp_path / "cache"), *words),
        preloaded=preloaded,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    found = json.loads(output.read_text())
    assert "\n".join(found["verdict"]) in done.stdout
    assert (tmp_path / "found-report" / "pareto-0-1.png").exists()
    assert (tmp_path / "found-report" / "report.html").exists()
    return {row["name"]: row for row in found["rows"]}


def test_eval_command_asks_a_running_server(
    server: ServerProcess, tmp_path: Path, preloaded: Preloaded
) -> None:
    rows = evaluation(tmp_path, preloaded, "--server", server.url, "--grid", "3")
    assert list(rows) == [
        *("reference", "one", "two", "uniform = @default"),
        *("0.333 0.667", "0.667 0.333"),
    ]
    assert not (tmp_path / "cache").exists(), "what a server runs may change"
    for own, name in enumerate(("one", "two", "reference")):
        assert rows[name]["kl"][own] == pytest.approx(0, abs=1e-3)
        assert min(kl for index, kl in enumerate(rows[name]["kl"]) if index != own) > 0


def test_eval_command_mixes_adapters_in_both_ways(
    adapted: AdaptedBase, tmp_path: Path, preloaded: Preloaded
) -> None:
    """One engine for all rows. Next to all weight on one adapter both ways are that adapter."""
    words = [f"--adapter={each.name}={each}" for each in adapted.adapters[:2]]
    store = tmp_path / "weights.json"
    first, second = (each.name for each in adapted.adapters[:2])
    profiles = {"alone": {"weights": {first: 1e-6, second: 1 - 1e-6}}}
    document = {"format": 1, "version": 1, "policies": [first, second]}
    store.write_text(json.dumps(document | {"default_profile": "alone", "profiles": profiles}))
    rows = evaluation(
        tmp_path,
        preloaded,
        *(f"--base={adapted.base}", *words, f"--reference=reference={adapted.base}"),
        *("--weights-store", str(store)),
        *("--", "--dtype", "float32", "--enforce-eager", "--max-model-len", "256"),
    )
    assert list(rows) == [
        *("reference", first, second, "uniform", "uniform, parameters"),
        *("@alone", "@alone, parameters"),
    ]
    for name in ("@alone", "@alone, parameters"):
        assert rows[name]["kl"][1] == pytest.approx(0, abs=1e-3)
    assert min(rows["uniform, parameters"]["kl"]) > 0.01
    assert rows["uniform, parameters"]["kl"] != rows["uniform"]["kl"]
    found = json.loads((tmp_path / "found.json").read_text())
    names = ("uniform", "uniform, parameters")
    assert (found["both_ways"][0]["logits"], found["both_ways"][0]["parameters"]) == names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompts", "gone.jsonl", "--policy", "a=gpt"], "gone.jsonl: cannot be read"),
        (["--scores", "gone.parquet"], "gone.parquet: cannot be read as Parquet"),
        (["--scores", "x", "--prompts", "y"], "not allowed with argument"),
        ([], "one of the arguments --prompts --scores is required"),
        (["--prompts", "README.md"], "no JSON"),
        (["--scores", "x", "--importance", "a=1"], "only used with --objective fixed"),
        (["--scores", "x", "--responses", "1"], "num_responses is 1"),
        (["--scores", "x", "--min-weight", "2"], "min_weight is 2.0"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], message: str, tmp_path: Path, preloaded: Preloaded
) -> None:
    output = str(tmp_path / "w.json")
    done = run_prefmix("fit", *words, "--output", output, preloaded=preloaded)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "w.json").exists()
