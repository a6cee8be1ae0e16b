"""The report and the summary of a fit, for every kind of result and several numbers of policies."""

import base64
import itertools
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from prefmix.weights.fit import score_table
from prefmix.weights.fit.result import FitResult
from prefmix.weights.fit.sequence_level.mirror_descent import DescentSettings
from prefmix.weights.fit.settings import FitSettings
from prefmix.weights.fit.summary import COLUMNS, summary
from prefmix.weights.fit.table_fit import fit_table
from prefmix.weights.fit.token_level.deployed import Deployed
from prefmix.weights.report import plots
from prefmix.weights.report.fit_report import write_report

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
CERTIFIED = {"simplex", "kl", "ess", "m_sweep"}
CHARTS = {
    "mixture": {"simplex", "kl", "trajectory", "rounds"},
    "reference": CERTIFIED | {"trajectory"},
    "rewards": CERTIFIED | {"trajectory"},
    "fixed": CERTIFIED - {"m_sweep"},  # nothing was fitted
}
KINDS = tuple(CHARTS)
SETTINGS = FitSettings(num_restarts=2, descent=DescentSettings(num_steps=40))


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the tests' time depends on the resolution."""
    monkeypatch.setattr(plots, "_DPI", 40)


def names_of(num_policies: int) -> tuple[str, ...]:
    return tuple(f"policy-{index}" for index in range(num_policies))


def made_up_table(names: tuple[str, ...], *, rewards: bool) -> score_table.ScoreTable:
    rng = np.random.default_rng(0)
    num_prompts, num_responses = 12, 8
    size = num_prompts * num_responses
    columns = {
        "prompt_id": np.repeat(np.arange(num_prompts), num_responses),
        "response_id": np.tile(np.arange(num_responses), num_prompts),
        "num_tokens": rng.integers(5, 60, size),
    }
    drawn = rng.normal(-30, 4, size)
    if not rewards:
        columns["logprob_reference"] = drawn
    for name in names:
        gain = rng.normal(0, 1, size)
        columns[f"reward_{name}" if rewards else f"logprob_{name}"] = (
            gain if rewards else drawn + gain - 0.5
        )
    return score_table.check(pa.table(columns), source="made up")


def made_up_deployed(names: tuple[str, ...]) -> Deployed:
    kl = {name: 1.5 + 0.1 * index for index, name in enumerate(names)}
    return Deployed(
        kl=kl,
        kl_interval={name: (value - 0.1, value + 0.1) for name, value in kl.items()},
        largest=1.7,
        largest_interval=(1.6, 1.8),
        gap=0.05,
        gap_interval=(0.01, 0.2),
        num_responses=2048,
        mean_tokens=29.3,
    )


def made_up_result(kind: str, names: tuple[str, ...]) -> FitResult:
    num_policies = len(names)
    if kind == "reference":
        found = fit_table(made_up_table(names, rewards=False), SETTINGS)
        return replace(found, deployed=made_up_deployed(names))
    if kind == "rewards":
        return fit_table(made_up_table(names, rewards=True), SETTINGS, beta=0.5)
    if kind == "fixed":
        settings = replace(SETTINGS, importances=dict.fromkeys(names, 2.0))
        return fit_table(made_up_table(names, rewards=False), settings)
    rng = np.random.default_rng(0)
    path_TK = rng.dirichlet(np.full(num_policies, 20.0), size=13)
    return FitResult(
        names=names,
        weights_K=path_TK[7:].mean(axis=0),
        fitted="mixture (token level)",
        path_TK=path_TK,
        rounds_kl_TK=rng.uniform(1, 2, (12, num_policies)),
        certificate=None,
        deployed=replace(
            made_up_deployed(names),
            fall=0.02,
            fall_interval=(0.0, 0.06),
            multipliers=dict.fromkeys(names, 1 / num_policies),
        ),
        verdict="trustworthy",
    )


class Page(HTMLParser):
    """Collects what a page would fetch, its text, and checks that tags are closed in order."""

    VOID = frozenset({"meta", "source", "img"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [
            value or "" for key, value in attrs if key in ("src", "srcset", "href", "action")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def written(result: FitResult, folder: Path, **about: object) -> str:
    path = write_report(result, folder, title="A fit", provenance=about)
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "num_policies"),
    [("mixture", 2), *itertools.product(KINDS, [3]), ("reference", 6)],  # each takes its time
)
def test_report_holds_everything_it_needs(kind: str, num_policies: int, tmp_path: Path) -> None:
    result = made_up_result(kind, names_of(num_policies))
    text = written(result, tmp_path)
    page = Page(text)
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert "<script" not in text
    pictures = sorted(tmp_path.glob("*.png"))
    assert len(page.addresses) == 2 * len(pictures), "each chart once for light, once for dark"
    for address in page.addresses:
        kind_of_data, _, content = address.partition(",")
        assert kind_of_data == "data:image/png;base64"
        assert base64.b64decode(content).startswith(PNG_SIGNATURE)
    for name, weight in result.weights.items():
        assert name in page.text
        assert f"{weight:.3f}" in page.text
    assert result.verdict.lower() in page.text.lower()
    simplex = set() if num_policies == 3 else {"simplex"}
    assert {path.stem for path in pictures} == CHARTS[kind] - simplex
    assert {*tmp_path.iterdir()} == {*pictures, tmp_path / "report.html"}


def test_text_is_escaped(tmp_path: Path) -> None:
    evil = "<img src='x'>&\"$a_b$"
    result = replace(made_up_result("reference", (evil, "_b", "")), verdict=f"trustworthy {evil}")
    path = write_report(
        result, tmp_path, title=evil, provenance={evil: {"more": [evil, 1]}, "none": None}
    )
    text = path.read_text(encoding="utf-8")
    assert "<img src='x'>" not in text
    page = Page(text)
    assert page.text.count(evil) >= 5
    assert f"{evil}.more" in page.text


def test_letters_the_font_lacks_do_not_stop_a_report(tmp_path: Path) -> None:
    assert "礼貌" in written(made_up_result("mixture", ("礼貌", "简洁", "b")), tmp_path)


def test_policies_that_cannot_be_told_apart_have_a_report(tmp_path: Path) -> None:
    result = made_up_result("mixture", names_of(3))
    assert result.deployed is not None
    zero = dict.fromkeys(result.names, 0.0)
    nothing = replace(result.deployed, kl=zero, kl_interval=dict.fromkeys(zero, (0.0, 0.0)))
    same_TK = np.full((13, 3), 1 / 3)
    written(
        replace(result, path_TK=same_TK, rounds_kl_TK=np.zeros((12, 3)), deployed=nothing), tmp_path
    )


def test_provenance_is_flat_and_leaves_out_what_stands_above(tmp_path: Path) -> None:
    text = written(
        made_up_result("mixture", names_of(2)),
        tmp_path,
        settings={"descent": {"step_size": 4.0}},
        certificate={"objective": 123.456},
    )
    assert "settings.descent.step_size" in text
    assert "123.456" not in text


def test_report_replaces_an_earlier_one_and_is_repeatable(tmp_path: Path) -> None:
    result = made_up_result("mixture", names_of(2))
    first = written(result, tmp_path)
    assert written(replace(result, verdict="not settled: x"), tmp_path) != first
    assert written(result, tmp_path) == first


def test_a_report_of_another_kind_leaves_no_chart_behind(tmp_path: Path) -> None:
    own = tmp_path / "notes.png"
    own.write_bytes(b"not ours")
    written(made_up_result("mixture", names_of(3)), tmp_path)
    written(made_up_result("fixed", names_of(2)), tmp_path)
    left = {path.stem for path in tmp_path.glob("*.png")}
    assert left == (CHARTS["fixed"] - {"simplex"}) | {"notes"}


@pytest.mark.parametrize("num_policies", [1, 2, 3, 6, 20])
@pytest.mark.parametrize("kind", KINDS)
def test_summary_is_narrow_and_complete(kind: str, num_policies: int) -> None:
    result = made_up_result(kind, names_of(num_policies))
    text = summary(result)
    assert max(map(len, text.splitlines())) <= COLUMNS
    assert result.fitted in text
    assert result.verdict in re.sub(r"\s+", " ", text)
    for name, weight in result.weights.items():
        assert re.search(rf"^{name} +{weight:.3f}", text, flags=re.MULTILINE)
    assert ("Largest KL" in text) == (result.deployed is not None)
    assert ("Deployed gap" in text) == (kind == "reference")
    assert ("Could fall by" in text) == (kind == "mixture")
    assert ("Objective F" in text) == (result.certificate is not None)
    assert ("Descent spread" in text) == (kind in ("reference", "rewards"))
    if num_policies <= 6:
        assert len(text.splitlines()) <= 32


def test_summary_cuts_long_names_not_lines() -> None:
    names = tuple(f"{'long-name-' * 5}{index}" for index in range(5))
    result = made_up_result("reference", names)
    kl = dict.fromkeys(names, 12345.6)
    assert result.deployed is not None
    far = replace(result.deployed, kl=kl, kl_interval=dict.fromkeys(names, (12345.67, 12345.68)))
    assert max(map(len, summary(replace(result, deployed=far)).splitlines())) <= COLUMNS


def test_labels_keep_order_and_distance() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 20):
        heights_K = rng.uniform(0, 1, size) ** 3
        spots_K = plots._spread(heights_K, least=0.05, low=0.0, high=1.0)
        assert (np.argsort(spots_K) == np.argsort(heights_K)).all()
        assert (np.diff(np.sort(spots_K)) > 0.0499).all()
        assert spots_K.min() >= 0
        assert spots_K.max() <= 1
    apart_K = np.array([0.9, 0.1, 0.5])
    assert np.allclose(plots._spread(apart_K, least=0.05, low=0, high=1), apart_K)


def test_charts_need_no_global_state_and_the_package_no_charts() -> None:
    script = (
        "import sys, prefmix.weights.fit.summary\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import prefmix.weights.report.fit_report\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
