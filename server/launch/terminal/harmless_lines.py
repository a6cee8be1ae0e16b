"""The lines of vLLM and its libraries that need no action from the user.

They are printed at every start or end. The default log level drops them; PREFMIX_LOG_LEVEL=info
shows them. A line is listed here only if it is known to be harmless for a mixture.
"""

from __future__ import annotations

import re

_HARMLESS = (
    # The CPU wheel has no Triton backend, and the mixture needs none there.
    "Triton is installed, but doesn't include CPU backend",
    "Triton is not installed. triton-cpu is expected",
    "Model Runner V2 requires Triton",
    # Restatements of flags that the user gave or that a backend without compilation implies.
    "Enforce eager set, disabling",
    "Inductor compilation was disabled by user settings",
    "Reset SSM cache type",
    # vLLM's faster product does not take a layer's sizes; torch's is used and as right.
    "Failed to create oneDNN linear, fallback to torch linear",
    # A flag of the command line that overrides the file's, as it is meant to.
    "Found duplicate keys --",
    # Differences between policies, which the launcher has said before in the same words.
    "[member_checks.py:",
    # A tokenizer beside an adapter, where vLLM looks for a model's config as well.
    "Should have a `model_type` key in its config.json.",
    # Our own scheduler, named to vLLM by our own plugin.
    "Using custom scheduler class prefmix.mixing.",
    # Reports of the machine's set-up, one a process.
    "Found ulimit of",
    "Warning: NUMA binding",
    "is not found in LD_PRELOAD",
    # An ordered end: vLLM ends its workers at once unless --shutdown-timeout is given.
    "[shutdown]",
    # Reference counts of Triton's C++ bindings at the interpreter's end.
    "nanobind: ",
    "nanobind.readthedocs.io",
)
_LEAK = re.compile(r" - (leaked (instance|type|function)|\.\.\. skipped remainder)")
# "/…/site-packages/vllm/file.py:138: FutureWarning: …", followed by an indented source line.
# The resource tracker says so when it removes the shared memory of an engine that has failed.
_LIBRARY_WARNING = re.compile(
    r"\S*/(site-packages/\S+|multiprocessing/resource_tracker)\.py:\d+: \w*Warning: "
)


class HarmlessLineFilter:
    """Recognises harmless lines; remembers one line, because some warnings have two."""

    def __init__(self) -> None:
        self._source_line_follows = False

    def is_harmless(self, line: str) -> bool:
        """True if a line needs no action from the user."""
        follows, self._source_line_follows = self._source_line_follows, False
        if follows and line.startswith("  "):
            return True
        if _LIBRARY_WARNING.match(line):
            self._source_line_follows = True
            return True
        return bool(_LEAK.match(line)) or any(text in line for text in _HARMLESS)
