"""docs/installing.md and the error messages agree with setup.sh, the lock and pyproject.toml."""

from __future__ import annotations

import re
import tomllib

from prefmix.server.launch import installation
from support.architecture import ROOT

PAGE = (ROOT / "docs" / "installing.md").read_text(encoding="utf-8")
SETUP = (ROOT / "scripts" / "setup.sh").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
UNUSED = ("torchvision", "torchaudio", "torchcodec")


def test_torch_and_its_index_are_those_of_the_set_up() -> None:
    (torch,) = re.findall(r"^TORCH=(.+)$", SETUP, flags=re.MULTILINE)
    (index,) = re.findall(r"^TORCH_CPU_INDEX=(.+)$", SETUP, flags=re.MULTILINE)
    assert set(re.findall(r"torch[!=]=([\d.]+\+cpu)", PAGE)) == {torch}
    assert set(re.findall(r"https://\S+/whl/cpu", PAGE)) == {index}
    assert index == installation.CPU_INDEX


def test_the_table_has_every_extra_but_that_of_development() -> None:
    named = set(re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE))
    assert named == PROJECT["optional-dependencies"].keys() - {"dev"}
    for name in ("cpu", "gpu"):
        (pin,) = PROJECT["optional-dependencies"][name]
        assert f"| `{name}` | vLLM {pin.partition('==')[2]}," in PAGE


def test_what_text_models_do_not_use_is_not_pinned_and_named_in_the_page() -> None:
    assert set(UNUSED) == set(installation._UNUSED_BY_TEXT)
    lock = (ROOT / "requirements" / "cpu.lock").read_text(encoding="utf-8")
    for name in UNUSED:
        assert f"{name}==" not in lock
    assert f"pip uninstall --yes {' '.join(UNUSED)}" in PAGE
    assert f"exclude-dependencies = {list(UNUSED)}".replace("'", '"') in PAGE


def test_pythons_are_those_of_the_set_up() -> None:
    lowest, highest = re.findall(r"\((3, \d+)\)", SETUP)
    low, high = (text.replace(", ", ".") for text in (lowest, highest))
    assert PROJECT["requires-python"] == f">={low},<{high}"
