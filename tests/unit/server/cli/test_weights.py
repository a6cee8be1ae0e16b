"""`prefmix weights` on a store file: output, changes and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prefmix.server.cli.main import main

Run = Callable[..., tuple[int, str, str]]

FIT = {
    "format": 1,
    "version": 7,
    "policies": ["a", "b"],
    "default_profile": "fitted",
    "profiles": {"fitted": {"weights": {"a": 0.25, "b": 0.75}, "provenance": {"seed": 1}}},
}


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """run("set", ...) works on w.json in a folder that has fit.json; returns code, out, err."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFMIX_ADMIN_TOKEN", raising=False)
    (tmp_path / "fit.json").write_text(json.dumps(FIT))

    def call(*words: str, store: str | None = "w.json") -> tuple[int, str, str]:
        target = [] if store is None else ["--weights-store", store]
        code = main(["weights", *words, *target])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def filled(run: Run) -> Run:
    """`run` on a store at version 2: `fitted` from the fit, `x` set by hand."""
    assert run("apply", "fit.json")[:2] == (0, "created: version 1, sha256 4da5e4390333\n")
    assert run("set", "x", "a=1", "b=1")[0] == 0
    return run


def test_a_profile_is_set_with_its_way_to_mix(filled: Run) -> None:
    assert filled("set", "x", "a=1", "b=1", "--mixing", "parameters")[0] == 0
    assert "x (parameters)" in filled("show")[1]
    assert json.loads(filled("show", "--json")[1])["profiles"]["x"]["mixing"] == "parameters"
    _, out, _ = filled("diff", "2", "3")
    assert "(mixing)" in out
    assert "parameters" in out


def test_a_way_to_mix_is_in_the_history_and_is_not_lost_in_silence(filled: Run) -> None:
    assert "mixed" not in filled("set", "x", "a=1", "b=1", "--mixing", "parameters")[1]
    assert filled("history")[1].splitlines()[1].endswith("  fitted, x (parameters)")
    rehearsed = filled("set", "x", "a=2", "b=1", "--dry-run")[1]
    assert "profile 'x' mixed parameters; it would now leave the way to mix" in rehearsed
    out = filled("set", "x", "a=2", "b=1")[1]
    assert "profile 'x' mixed parameters; it now leaves the way to mix to the server" in out
    assert "--mixing parameters' sets it" in out
    assert "mixed" not in filled("set", "x", "a=3", "b=1")[1]


def test_show_prints_an_aligned_table(filled: Run) -> None:
    code, out, err = filled("show")
    assert (code, err) == (0, "")
    assert out.splitlines()[2:5] == [
        "profile          a         b",
        "fitted *  0.250000  0.750000",
        "x         0.500000  0.500000",
    ]
    shown = json.loads(filled("show", "--json")[1])
    assert shown["version"] == 2
    assert shown["profiles"]["fitted"] == FIT["profiles"]["fitted"]  # type: ignore[index]
    assert out.splitlines()[0].endswith(shown["sha256"][:12])
    changed = shown["changed"]
    assert out.splitlines()[-1] == f"changed {changed['at']} by {changed['by']}"


def test_set_default_delete_and_rollback(filled: Run) -> None:
    assert filled("default", "x")[1].startswith("version 2 -> 3, sha256 ")
    code, _, err = filled("delete", "x")
    assert (code, "'x' is the default" in err) == (1, True)
    assert filled("delete", "fitted")[1].startswith("version 3 -> 4")
    assert filled("rollback", "2")[1].startswith("version 4 -> 5")
    assert filled("rollback")[1].startswith("version 5 -> 6")
    assert filled("set", "x", "a=5", "b=5")[1].startswith("unchanged: version 6")
    versions = [line.split()[0] for line in filled("history")[1].splitlines()]
    assert versions == ["version", "6", "5", "4", "3", "2", "1"]


def test_rollback_repairs_a_broken_file(filled: Run) -> None:
    Path("w.json").write_text("{")
    assert "would be kept as" in filled("rollback", "--dry-run")[1]
    code, out, err = filled("rollback")
    first, second = out.splitlines()
    assert (code, err) == (0, "")
    assert first == "version 1 -> 3, sha256 4da5e4390333"
    assert second.startswith("the store file could not be read; what it held is kept as ")
    assert Path("w.json.broken.3").read_text() == "{"
    assert filled("show")[0] == 0


def test_diff_shows_what_changed(filled: Run) -> None:
    filled("set", "x", "a=1", "b=3")
    filled("default", "x")
    assert filled("diff")[1].splitlines() == [
        "profile    policy  version 3  version 4",
        "(default)             fitted          x",
    ]
    assert filled("diff", "1", "3")[1].splitlines() == [
        "profile  policy  version 1  version 3",
        "x        a               -   0.250000",
        "x        b               -   0.750000",
    ]
    assert filled("diff", "4", "4")[1] == "versions 4 and 4 are equal\n"
    code, _, err = filled("diff", "9")
    assert (code, "version 9 is not kept; kept are: 1, 2, 3, 4" in err) == (1, True)


def test_apply_merges_or_replaces(filled: Run, tmp_path: Path) -> None:
    (tmp_path / "y.json").write_text(
        json.dumps({**FIT, "default_profile": "y", "profiles": {"y": {"weights": {"a": 1}}}})
    )
    out = filled("apply", "y.json")[1]
    assert "the default is still 'fitted'" in out
    assert "For all others: prefmix weights default y --weights-store w.json\n" in out
    assert "apply --default" in out
    shown = json.loads(filled("show", "--json")[1])
    assert (shown["default_profile"], list(shown["profiles"])) == ("fitted", ["fitted", "x", "y"])
    filled("apply", "y.json", "--replace")
    shown = json.loads(filled("show", "--json")[1])
    assert (shown["default_profile"], list(shown["profiles"])) == ("y", ["y"])
    assert filled("apply", "y.json")[1].startswith("unchanged")


def test_apply_takes_what_show_prints(filled: Run, tmp_path: Path) -> None:
    shown = json.loads(filled("show", "--json")[1])
    copy = tmp_path / "copy.json"
    copy.write_text(json.dumps(shown))
    assert filled("apply", "copy.json", "--replace")[1].startswith("unchanged")
    copy.write_text(json.dumps({**shown, "profiles": {"fitted": {"weights": {"a": 1}}}}))
    assert filled("apply", "copy.json", "--replace")[0] == 0
    changed = json.loads(filled("show", "--json")[1])
    assert changed["profiles"]["fitted"]["weights"] == {"a": 1.0, "b": 0.0}
    assert changed["sha256"] != shown["sha256"]
    copy.write_text(json.dumps({**shown, "sha256": "abc"}))
    code, _, err = filled("apply", "copy.json")
    assert (code, "sha256 is 'abc', expected 64 digits of 0-9 and a-f" in err) == (1, True), err


def test_apply_takes_the_default_of_the_file_if_asked(filled: Run, tmp_path: Path) -> None:
    (tmp_path / "y.json").write_text(
        json.dumps({**FIT, "default_profile": "y", "profiles": {"y": {"weights": {"a": 1}}}})
    )
    assert "still" not in filled("apply", "y.json", "--default")[1]
    shown = json.loads(filled("show", "--json")[1])
    assert (shown["default_profile"], set(shown["profiles"])) == ("y", {"fitted", "x", "y"})


def test_dry_run_and_if_match(filled: Run) -> None:
    code, out, _ = filled("set", "y", "a=1", "--dry-run")
    assert (code, out.startswith("valid: would become version 3")) == (0, True)
    assert "version 2" in filled("show")[1]
    code, _, err = filled("set", "y", "a=1", "--if-match", "1")
    assert (code, "expected 1, but the store is at version 2" in err) == (1, True)
    assert filled("set", "y", "a=1", "--if-match", "2")[0] == 0


def test_validate_checks_a_file_and_its_fit(filled: Run, tmp_path: Path) -> None:
    assert "fit.json is valid and fits w.json" in filled("validate", "fit.json")[1]
    assert "valid in the store's format" in filled("validate", "fit.json", store=None)[1]
    (tmp_path / "other.json").write_text(
        json.dumps({**FIT, "policies": ["a", "c"], "profiles": {"fitted": {"weights": {"c": 1}}}})
    )
    assert filled("validate", "other.json", store=None)[0] == 0
    code, _, err = filled("validate", "other.json")
    assert (code, "other.json: policies are a, c" in err) == (1, True)


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["set", "x", "a:1"], 2, ["'a:1'", "POLICY=NUMBER"]),
        (["set", "x", "a=one"], 2, ["'a=one'", "POLICY=NUMBER"]),
        (["set", "x", "a=1", "a=2"], 2, ["'a'", "twice"]),
        (["set", "x"], 2, ["POLICY=NUMBER"]),
        (["set", "x", "c=1"], 1, ["'c'", "a, b"]),
        (["set", "x", "a=-1", "b=2"], 1, ["'x'", "-1", ">= 0"]),
        (["set", "x", "a=nan"], 1, ["'x'", "NaN", "finite"]),
        (["set", "custom", "a=1"], 1, ["'custom'", "another name"]),
        (["default", "nobody"], 1, ["'nobody'", "fitted, x"]),
        (["rollback", "9"], 1, ["version 9", "kept are: 1"]),
        (["rollback", "first"], 2, ["VERSION", "'first'"]),
        (["rollback", "--drain"], 2, ["--drain belongs to --url"]),
        (["apply", "missing.json"], 1, ["missing.json", "does not exist"]),
        (["apply", "."], 1, ["cannot read .", "directory"]),
        (["validate", "broken.json"], 1, ["broken.json line 1 column 2", "not JSON"]),
        (["frobnicate"], 2, ["'frobnicate'", "rollback"]),
        (["show", "--", "--port=1"], 2, ["nothing after '--'"]),
        (["show", "--url", "http://127.0.0.1:1"], 2, ["either", "--url"]),
        (["show", "--token", "t"], 2, ["token", "--url"]),
    ],
)
def test_refusals_are_one_sentence(
    filled: Run, tmp_path: Path, words: list[str], code: int, parts: list[str]
) -> None:
    (tmp_path / "broken.json").write_text("{")
    at = words.index("--") if "--" in words else len(words)
    words = [*words[:at], "--weights-store", "w.json", *words[at:]]
    got, out, err = filled(*words, store=None)
    assert (got, out) == (code, "")
    assert err.startswith("prefmix: error: ")
    assert err.count("\n") == 1
    assert [part for part in parts if part not in err] == [], err


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["show"], 2, ["--weights-store PATH", "--url"]),
        (["show", "--url", "http://127.0.0.1:1"], 2, ["PREFMIX_ADMIN_TOKEN", "--token-file"]),
        (["show", "--url", "ftp://x", "--token", "t"], 1, ["'ftp://x'", "http://127.0.0.1:8000"]),
        (["show", "--url", "http://127.0.0.1:1", "--token", "t"], 1, ["cannot reach", "refused"]),
        (["show", "--url", "http://x", "--token-file", "none"], 2, ["none", "No such file"]),
        (["show", "--url", "http://x", "--token", "t", "--token-file", "f"], 2, ["either --token"]),
        (["show", "--url", "http://x", "--token", "tök"], 2, ["HTTP header"]),
        (["show", "--url", "http://x", "--token-file", "/dev/zero"], 2, ["HTTP header"]),
    ],
)
def test_what_to_work_on_must_be_said(
    run: Run, words: list[str], code: int, parts: list[str]
) -> None:
    got, out, err = run(*words, store=None)
    assert (got, out) == (code, "")
    assert [part for part in parts if part not in err] == [], err


def test_a_missing_store_names_the_way_out(run: Run, tmp_path: Path) -> None:
    for words in (["set", "x", "a=1"], ["default", "x"], ["rollback"]):
        code, _, err = run(*words)
        assert code == 1
        assert "w.json does not exist" in err
        assert "make it with 'prefmix weights apply" in err
        assert not list(tmp_path.glob("w.json*")), "nothing is left beside it either"


def test_history_is_drawn_on_demand(filled: Run) -> None:
    code, out, _ = filled("history", "--plot", "h.png")
    assert (code, out.splitlines()[-1]) == (0, "plot  h.png")
    assert Path("h.png").read_bytes().startswith(b"\x89PNG")
    assert filled("history", "--plot", "h.png", "--profile", "x")[0] == 0
    code, _, err = filled("history", "--profile", "x")
    assert (code, "--profile belongs to --plot" in err) == (2, True)
    code, _, err = filled("history", "--plot", "h.png", "--profile", "nobody")
    assert (code, "has a profile 'nobody'" in err) == (1, True)
