"""The middleware admits, refuses and ends requests, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from prefmix.server.config.limits import Limits
from prefmix.server.http.errors import RequestError
from prefmix.server.telemetry.metrics import NO_PROFILE, REQUESTS
from prefmix.server.traffic import request_body
from prefmix.server.traffic.admission_control import AdmissionController
from prefmix.server.traffic.drain import Drain
from prefmix.server.traffic.middleware import (
    TIMEOUT_HEADER,
    BodyLimitMiddleware,
    TrafficMiddleware,
    shortest,
)
from prefmix.server.traffic.request_lifetime import SCOPE_KEY, RequestEndedError
from prefmix.server.traffic.shared_counts import SharedCounts
from support.loopback_server import LoopbackServer, serving

MAX_BODY = 100_000
STREAM = {"seconds": 5, "stream": True}


class Application:
    """An application that the body controls; stops when its client goes, as vLLM's handlers do."""

    def __init__(self, *, timeout_s: float | None = None, drain_s: float = 30) -> None:
        self.counts = SharedCounts(None)
        self.admission = AdmissionController(
            self.counts, max_running=1, num_engines=1, max_waiting=1
        )
        self.under_way = 0
        self.drain = Drain(timeout_s=drain_s, unfinished=lambda: self.under_way)
        self._limits = Limits(request_timeout=timeout_s)

    def __call__(self) -> ASGIApp:
        routes = [
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.tokenize, methods=["POST"]),
            Route("/echo", self.echo, methods=["POST", "GET"]),
        ]
        body_limit = BodyLimitMiddleware(Router(routes), max_body_bytes=MAX_BODY)
        return TrafficMiddleware(
            body_limit, admission=self.admission, drain=self.drain, limits=self._limits
        )

    async def echo(self, request: Request) -> Response:
        return JSONResponse({"length": len(await request.body())})

    async def tokenize(self, request: Request) -> Response:
        order = await request.json()
        with contextlib.suppress(RequestEndedError):
            await request.scope[SCOPE_KEY].run(asyncio.sleep(order["seconds"]))
        return JSONResponse({})

    async def complete(self, request: Request) -> Response:
        order = await request.json()
        reservation = self.admission.reserve(1)
        request.scope[SCOPE_KEY].on_close(reservation.release)
        if order.get("stream"):
            return StreamingResponse(self._events(order), media_type="text/event-stream")
        self.under_way += 1
        work = asyncio.ensure_future(asyncio.sleep(order["seconds"]))
        gone = asyncio.ensure_future(request.receive())
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not gone.done():
                work.result()
        finally:
            work.cancel()
            gone.cancel()
            self.under_way -= 1
        return JSONResponse({"answer": "x" * order.get("size", 1)})

    async def _events(self, order: dict[str, Any]) -> Any:
        self.under_way += 1
        try:
            for number in range(int(order["seconds"] / 0.02)):
                yield f"data: {number}\n\n"
                await asyncio.sleep(0.02)
        finally:
            self.under_way -= 1


@pytest.fixture
def application() -> Application:
    return Application()


@pytest.fixture
def server(application: Application) -> Iterator[LoopbackServer]:
    with serving(application) as running:
        yield running


@pytest.fixture
def client(server: LoopbackServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60) as opened:
        yield opened


def complete(client: httpx.Client, headers: Any = None, **order: Any) -> httpx.Response:
    return client.post("/v1/completions", json={"seconds": 0.01, **order}, headers=headers)


def eventually(is_so: Any, limit_s: float = 60) -> None:
    end = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == response.status_code
    error: dict[str, Any] = body["error"]
    return error


def head(*lines: str) -> bytes:
    first = ("POST /v1/completions HTTP/1.1", "host: x", "content-type: application/json")
    return "\r\n".join([*first, *lines, "", ""]).encode()


def test_a_full_server_refuses_before_it_has_read_the_body(
    client: httpx.Client, server: LoopbackServer, application: Application
) -> None:
    reservations = [application.admission.reserve(1) for _ in range(2)]
    refused = complete(client)
    assert refused.status_code == 503
    assert error_of(refused)["type"] == "ServiceUnavailableError"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as peer:
        peer.sendall(head(f"content-length: {MAX_BODY}"))
        assert peer.recv(1000).startswith(b"HTTP/1.1 503")
    # The rest of the server is not concerned, and a place that becomes free is taken.
    assert client.get("/echo").status_code == 200
    reservations[0].release()
    assert complete(client).status_code == 200
    # The place is given back in the server's thread, which may be after the answer has come.
    eventually(lambda: application.counts.in_flight == 1)


def test_a_place_is_free_again_however_a_request_ends(
    client: httpx.Client, application: Application
) -> None:
    assert complete(client).status_code == 200
    assert complete(client, seconds="no number").status_code == 500
    assert complete(client, {TIMEOUT_HEADER: "0.1"}, seconds=5).status_code == 504
    with client.stream("POST", "/v1/completions", json=STREAM) as stream:
        chunks = stream.iter_bytes()  # without a reference the connection would be closed
        next(chunks)
        assert application.counts.in_flight == 1
    eventually(lambda: application.counts.in_flight == application.under_way == 0)


def test_a_request_is_ended_at_its_deadline(client: httpx.Client, application: Application) -> None:
    began = time.monotonic()
    late = complete(client, {TIMEOUT_HEADER: "0.3"}, seconds=60)
    assert 0.3 <= time.monotonic() - began < 30
    assert late.status_code == 504
    assert error_of(late)["type"] == "GatewayTimeoutError"
    assert "within its 0.3 s" in error_of(late)["message"]
    eventually(lambda: application.under_way == 0)
    assert complete(client).status_code == 200, "the connection goes on"


def test_a_stream_is_ended_at_its_deadline_with_an_event(
    client: httpx.Client, application: Application
) -> None:
    headers = {TIMEOUT_HEADER: "2"}
    late = client.post("/v1/completions", json={**STREAM, "seconds": 60}, headers=headers)
    events = late.text.removesuffix("\n\n").split("\n\n")
    assert events[:2] == ["data: 0", "data: 1"]
    assert events[-1] == "data: [DONE]"
    assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == 504
    eventually(lambda: application.under_way == 0)


def test_the_servers_own_bound_holds_for_all() -> None:
    with (
        serving(Application(timeout_s=2)) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client,
    ):
        for headers in (None, {TIMEOUT_HEADER: "60"}):
            assert complete(client, headers, seconds=60).status_code == 504
        assert complete(client).status_code == 200


def test_a_client_may_only_shorten_the_time() -> None:
    assert shortest(None, None) is None
    assert shortest(5, None) == 5
    assert shortest(None, "2.5") == 2.5
    assert shortest(5, "2") == 2
    assert shortest(5, "9") == 5
    for nonsense in ("", "0", "-1", "nan", "inf", "soon"):
        with pytest.raises(RequestError, match="expected a number of seconds above 0"):
            shortest(5, nonsense)


def test_a_body_that_is_too_long_is_refused(client: httpx.Client, server: LoopbackServer) -> None:
    assert client.post("/echo", content=b"x" * MAX_BODY).json() == {"length": MAX_BODY}
    for path in ("/echo", "/v1/completions"):
        refused = client.post(path, content=b"x" * (MAX_BODY + 1))
        assert refused.status_code == 413
        assert error_of(refused)["type"] == "RequestTooLargeError"
        assert "--max-body-bytes" in error_of(refused)["message"]
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as peer:
        peer.sendall(head("content-length: 99999999999"))
        assert peer.recv(1000).startswith(b"HTTP/1.1 413"), "before any of it has come"


def test_a_body_of_unknown_length_is_read_no_further_than_allowed(
    client: httpx.Client, server: LoopbackServer
) -> None:
    refused = client.post("/echo", content=iter([b"x" * 10_000] * 50))
    assert refused.status_code == 413
    assert client.post("/echo", content=iter([b"x" * 10_000] * 5)).json() == {"length": 50_000}
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as peer:
        peer.sendall(head("transfer-encoding: chunked"))
        chunk = b"2710\r\n" + b"x" * 10_000 + b"\r\n"
        peer.sendall(chunk * 11)
        assert peer.recv(1000).startswith(b"HTTP/1.1 413"), "while more was to come"


def test_a_body_that_does_not_arrive_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, server: LoopbackServer
) -> None:
    monkeypatch.setitem(request_body.read_body.__kwdefaults__, "timeout_s", 0.3)
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as peer:
        peer.sendall(head("content-length: 50") + b"{")
        answer = b"".join(iter(lambda: peer.recv(1000), b""))
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"1 bytes came" in answer


def test_a_client_that_disconnects_while_it_sends_leaves_nothing_behind(
    server: LoopbackServer, application: Application
) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as peer:
        peer.sendall(head("content-length: 50") + b"{")
        eventually(lambda: len(server.server_state.tasks) == 1)
    eventually(lambda: not server.server_state.tasks)
    assert application.counts.in_flight == 0


def test_while_draining_requests_finish_and_new_ones_are_refused(
    client: httpx.Client, server: LoopbackServer, application: Application
) -> None:
    answers: list[httpx.Response] = []
    slow = threading.Thread(target=lambda: answers.append(complete(client, seconds=1)))
    slow.start()
    eventually(lambda: application.under_way == 1)
    draining = asyncio.run_coroutine_threadsafe(application.drain.run(), server.loop)
    eventually(lambda: application.drain.is_on)
    late = complete(client)
    assert late.status_code == 503
    assert late.headers["connection"] == "close"
    assert int(late.headers["retry-after"]) > 0
    assert "ending" in error_of(late)["message"]
    assert client.get("/echo").status_code == 200
    assert not draining.done()
    draining.result(10)
    slow.join()
    assert answers[0].status_code == 200


def test_what_does_not_finish_in_time_is_terminated_with_a_message() -> None:
    application = Application(drain_s=0.2)
    with (
        serving(application) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60) as client,
    ):
        answers: dict[bool, httpx.Response] = {}

        def send(stream: bool) -> None:
            answers[stream] = complete(client, seconds=60, stream=stream)

        threads = [threading.Thread(target=send, args=(stream,)) for stream in (False, True)]
        for thread in threads:
            thread.start()
        eventually(lambda: application.under_way == 2)
        began = time.monotonic()
        server.run_in_loop(application.drain.run())
        assert time.monotonic() - began < 30
        for thread in threads:
            thread.join()
    assert answers[False].status_code == 503
    assert answers[False].headers["retry-after"]
    *_, last, done = answers[True].text.removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == 503
    assert application.under_way == 0


class Engine:
    """The part of vLLM's client that the drain calls."""

    def __init__(self) -> None:
        self.ended: list[float | None] = []

    def shutdown(self, timeout: float | None = None) -> None:
        self.ended.append(timeout)


def test_the_engine_ends_after_the_requests(
    client: httpx.Client, server: LoopbackServer, application: Application
) -> None:
    engine = Engine()

    async def delay_shutdown() -> None:
        application.drain.delay_shutdown(engine)

    server.run_in_loop(delay_shutdown())
    slow = threading.Thread(target=lambda: complete(client, seconds=0.5))
    slow.start()
    eventually(lambda: application.under_way == 1)
    began = time.monotonic()
    engine.shutdown(timeout=7)  # vLLM does so from another thread
    assert time.monotonic() - began > 0.3
    assert engine.ended == [7]
    slow.join()

    async def shut_down() -> None:
        application.drain.is_on = False
        engine.shutdown(timeout=1)

    server.run_in_loop(shut_down())  # at the very end it does so in the loop, which cannot wait
    assert engine.ended == [7, 1]
    assert not application.drain.is_on


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_requests_for_token_ids_have_a_limit_of_their_own(
    application: Application, client: httpx.Client, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask() -> httpx.Response:
        return client.post(path, json={"seconds": 0.01})

    counted = REQUESTS.labels(NO_PROFILE, "refused")._value.get
    before = counted()
    assert ask().status_code == 200
    late = client.post(path, json={"seconds": 9}, headers={TIMEOUT_HEADER: "0.1"})
    assert late.status_code == 504
    with monkeypatch.context() as patch:
        patch.setattr("prefmix.server.traffic.middleware.MAX_TOKENIZING", 0)
        refused = ask()
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert ask().status_code == 200, "the one before has left its place"
    held = [application.admission.reserve(1) for _ in range(2)]
    assert ask().status_code == 200, "a full engine is no reason"
    for reservation in held:
        reservation.release()
    assert ask().status_code == 200
    application.drain.is_on = True
    assert ask().status_code == 503, "the server is ending"
    assert counted() == before, "this counts requests for text"


def test_bodies_that_do_not_end_do_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch, application: Application
) -> None:
    monkeypatch.setattr("prefmix.server.traffic.middleware.MAX_ARRIVING_BYTES", 4 * MAX_BODY)
    with serving(application) as server, contextlib.ExitStack() as stack:
        peers = []
        for _ in range(5):
            peer = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            peer.settimeout(60)
            announced = f"content-length: {MAX_BODY}\r\n\r\n".encode()
            peer.sendall(b"POST /echo HTTP/1.1\r\nhost: x\r\n" + announced + b" " * (MAX_BODY - 1))
            peers.append(peer)
        refused, _, _ = select.select(peers, [], [], 20)
        assert len(refused) == 1
        answer = refused[0].recv(1000)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1" in answer.lower()
        others = [peer for peer in peers if peer not in refused]
        for peer in others:
            peer.sendall(b" ")
            assert peer.recv(1000).startswith(b"HTTP/1.1 200")
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client:
            assert client.post("/echo", content=b" " * MAX_BODY).status_code == 200
