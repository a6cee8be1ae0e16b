"""The command line of `prefmix bench`."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence

import pytest

from prefmix.bench.command import BENCHES
from prefmix.bench.over_http.servers import HOST, MIXTURE, PLAIN, PREFMIX, commands, with_port
from prefmix.server.cli.main import main


def test_help_lists_every_bench(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    out = capsys.readouterr().out
    assert all(name in out for name in (*BENCHES, "kernels"))


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["bench"], ["WHAT"]),
        (["bench", "engines"], ["engines", "mixed-batch"]),
        (["bench", "engine", "--contestants", "nobody"], ["nobody", "trunk"]),
        (["bench", "memory", "--batches", "3"], ["--batches"]),
        (["bench", "engine", "--model-size", "3b"], ["3b", "134m"]),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(
    words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(part in error for part in parts), error


def test_the_kernels_bench_reads_its_own_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def kernels_main(argv: Sequence[str]) -> int:
        seen.extend(argv)
        return 7

    module = types.ModuleType("prefmix.bench.kernels")
    vars(module)["main"] = kernels_main
    monkeypatch.setitem(sys.modules, "prefmix.bench.kernels", module)
    words = ["--rows", "1", "--help", "x", "-v"]
    assert main(["bench", "kernels", *words]) == 7
    assert seen == words


def test_the_servers_differ_in_nothing_but_what_is_compared() -> None:
    import argparse

    from prefmix.bench.command import add_arguments

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["http"])
    found = commands(args, "/a/model", ["--enforce-eager"])
    plain, mixture, ours = (found[name] for name in (PLAIN, MIXTURE, PREFMIX))
    assert mixture[: len(plain)] == plain
    assert [word.partition("=")[0] for word in mixture[len(plain) :]] == ["--hf-overrides"]
    engine = ours[ours.index("--") + 1 :]
    assert plain[-len(engine) :] == engine
    assert "--enforce-eager" in engine
    for command in (plain, mixture, ours):
        assert command[command.index("--host") + 1] == HOST


def test_the_port_is_given_before_the_words_for_vllm() -> None:
    assert with_port(["serve", "--", "-x"], 9) == ["serve", "--port", "9", "--", "-x"]
    assert with_port(["serve"], 9) == ["serve", "--port", "9"]
