"""vLLM's HTTP server asks nobody's command line when it ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys

import pytest

from prefmix.server import port_holder


def test_a_child_with_the_servers_socket_is_not_found(
    vllm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.entrypoints.launchers import launcher

    find = launcher.find_process_using_port
    monkeypatch.setattr(launcher, "find_process_using_port", find)  # put back afterwards
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        wait = [sys.executable, "-c", "import sys; sys.stdin.read()"]
        child = subprocess.Popen(wait, stdin=subprocess.PIPE, pass_fds=[server.fileno()])
    try:  # the child alone has the socket: of two holders vLLM looks at the highest process id
        found = find(port)
        assert found is not None, "vLLM looks in another way now"
        assert found.pid == child.pid
        port_holder.look_for_none()
        assert launcher.find_process_using_port(port) is None
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()


def test_vllms_server_ends_by_that_function(vllm: None) -> None:
    """Otherwise the name that is replaced would be nobody's."""
    from vllm.entrypoints.launchers import launcher

    assert "find_process_using_port" in launcher.serve_http.__code__.co_names
