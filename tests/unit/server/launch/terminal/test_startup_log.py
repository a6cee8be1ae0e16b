"""Standard error while the engine starts: no tracebacks, no harmless lines, a failure's cause."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from prefmix.server.launch.terminal.harmless_lines import HarmlessLineFilter
from prefmix.server.launch.terminal.startup_log import TracebackFilter

ENGINE = "(EngineCore pid=12) ERROR 11-20 11:05:02 [core.py:1510] "
WORKER = "(Worker pid=34) ERROR 11-20 11:05:01 [multiproc_executor.py:953] "


def filtered(text: str) -> tuple[list[str], str | None]:
    """The lines shown of a log, and the cause found in it."""
    lines = textwrap.dedent(text).strip("\n").splitlines(keepends=True)
    sorter = TracebackFilter()
    return [line.rstrip("\n") for line in lines if sorter.show(line)], sorter.cause


def test_ordinary_lines_pass() -> None:
    text = "prefmix: starting\n(APIServer pid=1) WARNING 11-20 11:05:02 [a.py:1] careful"
    assert filtered(text) == (text.splitlines(), None)


def test_a_traceback_is_held_back_and_its_cause_kept() -> None:
    shown, cause = filtered(
        """
        before
        Traceback (most recent call last):
          File "x.py", line 1, in <module>
            raise ValueError("bad")
                  ^^^^^^^^^^^^^^^^^
        package.errors.SomeError: bad: it is
        after
        """
    )
    assert shown == ["before", "after"]
    assert cause == "SomeError: bad: it is"


def test_a_step_that_fails_in_a_worker_is_held_back() -> None:
    """The engine's check of itself says it in one sentence."""
    text = "\n".join(
        [
            f"{WORKER}WorkerProc hit an exception.",
            f"{WORKER}Traceback (most recent call last):",
            f'{WORKER}  File "w.py", line 1, in f',
            f"{WORKER}RuntimeError: Unsupported CPU attention configuration",
        ]
    )
    assert filtered(text)[0] == []


def test_the_worker_is_believed_before_the_engine_that_reports_it() -> None:
    text = "\n".join(
        [
            f"{WORKER}WorkerProc failed to start.",
            f"{WORKER}Traceback (most recent call last):",
            f'{WORKER}  File "w.py", line 1, in f',
            f"{ENGINE}EngineCore failed to start.",
            f"{ENGINE}Traceback (most recent call last):",
            f"{WORKER}OSError: no such file",
            f'{ENGINE}  File "e.py", line 1, in f',
            f"{ENGINE}RuntimeError: WorkerProc initialization failed due to an exception",
            "Process EngineCore:",
            "Traceback (most recent call last):",
            '  File "p.py", line 1, in f',
            "RuntimeError: WorkerProc initialization failed due to an exception",
            "RuntimeError: Engine core initialization failed. See root cause above.",
        ]
    )
    shown, cause = filtered(text)
    assert cause == "OSError: no such file"
    assert shown == ["RuntimeError: Engine core initialization failed. See root cause above."]


def test_of_chained_exceptions_the_last_counts() -> None:
    shown, cause = filtered(
        """
        Traceback (most recent call last):
          File "x.py", line 1, in f
        KeyError: 'low level'

        The above exception was the direct cause of the following exception:

        Traceback (most recent call last):
          File "x.py", line 2, in f
        ValueError: what it means
        """
    )
    assert cause == "ValueError: what it means"
    assert [line for line in shown if line] == []


def test_chained_exceptions_of_a_logged_traceback_leave_no_empty_line() -> None:
    head = "(Worker pid=7) ERROR 11-21 20:55:31 [multiproc_executor.py:953] "
    lines = [
        "Traceback (most recent call last):",
        "AssertionError",
        "",
        "The above exception was the direct cause of the following exception:",
        "",
        "Traceback (most recent call last):",
        "ValueError: what it means",
    ]
    shown, cause = filtered("\n".join(head + line for line in lines))
    assert cause == "ValueError: what it means"
    assert shown == []


def test_an_interrupt_is_no_cause() -> None:
    _, cause = filtered("Traceback (most recent call last):\n  x\nKeyboardInterrupt: terminated")
    assert cause is None


def test_a_running_server_ends_for_the_first_failure_of_its_last_minute() -> None:
    """One request's error of Monday is not why the server ends on Thursday."""
    now_s = 0.0
    sorter = TracebackFilter(clock=lambda: now_s)

    def fails(at_s: float, message: str) -> str | None:
        nonlocal now_s
        now_s = at_s
        for line in ("Traceback (most recent call last):", "  x", f"ValueError: {message}"):
            sorter.show(f"{line}\n")
        return sorter.cause

    fails(0, "a start that takes long")
    assert fails(600, "its consequence") == "ValueError: a start that takes long"
    sorter.begin_to_run()
    assert sorter.cause is None
    assert fails(1000, "Monday") == "ValueError: Monday"
    now_s = 1059
    assert sorter.cause == "ValueError: Monday"
    now_s = 1061
    assert sorter.cause is None
    assert fails(2000, "Thursday") == "ValueError: Thursday"
    assert fails(2010, "its consequence") == "ValueError: Thursday"
    assert fails(2031, "something else") == "ValueError: something else"


@pytest.mark.parametrize(
    "line",
    [
        "(Worker pid=1) WARNING 11-20 11:18:32 [vllm.py:725] Model Runner V2 requires Triton; x",
        "nanobind: leaked 4 instances!",
        ' - leaked type "triton._C.libtriton.ir.location"',
        "/x/site-packages/vllm/a.py:138: FutureWarning: `x` is deprecated",
        "/x/python3.11/multiprocessing/resource_tracker.py:254: UserWarning: 1 leaked",
        "(APIServer pid=7) WARNING 11-22 00:29:17 [member_checks.py:29] policies 'a' and 'b' have",
        "(APIServer pid=7) ERROR 11-22 00:29:17 [repo_utils.py:124] Error parsing config for /x: "
        "Unrecognized model in /x. Should have a `model_type` key in its config.json.",
        "(Worker pid=7) WARNING 11-22 03:01:00 [utils.py:597] Failed to create oneDNN linear, "
        "fallback to torch linear. Exception: could not create a primitive",
        "WARNING 11-22 03:01:00 [argparse_utils.py:458] Found duplicate keys --enforce-eager",
    ],
)
def test_harmless_is_recognised(line: str) -> None:
    assert HarmlessLineFilter().is_harmless(line)


def test_the_source_line_of_a_library_warning_goes_with_it() -> None:
    harmless = HarmlessLineFilter()
    assert harmless.is_harmless("/x/site-packages/vllm/a.py:138: FutureWarning: old\n")
    assert harmless.is_harmless("  if hasattr(value):\n")
    assert not harmless.is_harmless("  an indented line of its own\n")


@pytest.mark.parametrize(
    "line",
    [
        "prefmix: warning: policies 'a' and 'b' have different chat templates",
        "(Worker pid=1) WARNING 11-20 11:18:32 [x.py:1] the cache is too small",
        "/home/me/my_model.py:3: UserWarning: mine",
    ],
)
def test_news_is_not_harmless(line: str) -> None:
    assert not HarmlessLineFilter().is_harmless(line)


SCRIPT = """
import os, subprocess, sys
from prefmix.server.launch.terminal.startup_log import StartupLog
lines = ["Traceback (most recent call last):", "  x", "OSError: child"]
child = f"import sys; print(*{lines}, sep=chr(10), file=sys.stderr)"
with StartupLog(enabled=True) as log:
    print("mine", file=sys.stderr)
    subprocess.run([sys.executable, "-c", child])
    os.write(2, b"nanobind: leaked 1 instances!\\n")
    os.write(2, b"low level\\n")
    if RELEASE:
        import time; time.sleep(0.5)
        log.release()
        subprocess.run([sys.executable, "-c", child.replace("child", "later")])
        os.write(2, b"prefmix-stage: 950 checking the engine\\n")  # of an engine alone
print("cause:", log.cause, file=sys.stderr)
"""


@pytest.mark.parametrize("release", [False, True])
def test_a_process_and_its_children_are_filtered_until_release(release: bool) -> None:
    run = subprocess.run(
        [sys.executable, "-c", f"RELEASE = {release}\n{SCRIPT}"],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ},
    )
    assert run.returncode == 0
    news = ["Traceback (most recent call last):", "  x", "OSError: later"] if release else []
    cause = "cause: OSError: later" if release else "cause: OSError: child"
    assert run.stderr.splitlines() == ["mine", "low level", *news, cause]


@pytest.mark.parametrize("why", ["full", "gone"])
def test_a_log_that_takes_no_more_does_not_stop_its_writers(why: str) -> None:
    """The text is longer than a pipe holds: without a reader the server would stand still."""
    script = """
import os
from prefmix.server.launch.terminal.startup_log import StartupLog
with StartupLog(enabled=True) as log:
    log.release()
    for _ in range(5000):
        os.write(2, b"x" * 99 + b"\\n")
os.write(1, b"went on")
"""
    if why == "full":
        log = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, log = os.pipe()
        os.close(reader)
    try:
        run = subprocess.run(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=log, timeout=60
        )
    finally:
        os.close(log)
    assert run.stdout == b"went on"
