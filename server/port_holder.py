"""vLLM's HTTP server ends without looking for other processes on its port.

vLLM 0.32 logs the command line of a process that it finds there, which is one of its own: they
inherit the socket. Where that process is ending too, as a killed engine is, it has no command line
any more, and the error that says so took the place of the real reason in `prefmix serve`'s last
line.
"""

from __future__ import annotations


def look_for_none() -> None:
    """Makes the end of vLLM's HTTP server in this process find nobody. May run repeatedly."""
    from vllm.entrypoints.launchers import launcher

    launcher.find_process_using_port = lambda port: None
