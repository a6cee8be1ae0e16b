"""Admission is bounded by the requests that run and that wait, over all API processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefmix.server.http.errors import RequestError
from prefmix.server.traffic.admission_control import (
    MAX_RETRY_AFTER_S,
    AdmissionController,
    OverloadedError,
    Rate,
    Reservation,
    default_max_waiting,
)
from prefmix.server.traffic.shared_counts import SharedCounts


def admission(
    counts: SharedCounts, *, max_running: int = 4, max_waiting: int = 2, num_engines: int = 1
) -> AdmissionController:
    return AdmissionController(
        counts, max_running=max_running, max_waiting=max_waiting, num_engines=num_engines
    )


def fill(door: AdmissionController) -> list[Reservation]:
    """Reservations until the next one is refused."""
    reservations = []
    while True:
        try:
            reservations.append(door.reserve(1))
        except OverloadedError:
            return reservations


@pytest.mark.parametrize(("max_waiting", "let_in"), [(2, 6), (0, 4)])
def test_as_many_as_run_and_a_bounded_number_that_wait(max_waiting: int, let_in: int) -> None:
    door = admission(SharedCounts(None), max_waiting=max_waiting)
    reservations = fill(door)
    assert len(reservations) == let_in
    assert (door.in_flight, door.num_waiting) == (let_in, max_waiting)
    reservations.pop().release()
    assert len(fill(door)) == 1


def test_a_ticket_is_counted_once_however_it_ends() -> None:
    counts = SharedCounts(None)
    reservation = admission(counts).reserve(3)
    reservation.hand_over(1)
    counts.set_num_requests(1)  # the engine's own count has it now
    assert counts.in_flight == 3
    counts.set_num_requests(0)  # and it has ended
    assert counts.in_flight == 2
    reservation.release()
    reservation.release()
    reservation.hand_over(2)
    assert counts.in_flight == 0


def test_what_vllm_never_forgets_takes_no_room_once_its_request_has_ended() -> None:
    counts = SharedCounts(None)
    door = admission(counts)
    for _ in range(3):
        reservation = door.reserve(4)
        reservation.hand_over(4)
        counts.set_num_requests(96)
        assert counts.in_flight == 4
        reservation.release()
        assert (counts.in_flight, door.num_waiting) == (0, 0)
    assert len(fill(door)) == 6
    # Nor does it take what another process has.
    assert door.in_flight == 6


def test_the_end_of_a_reservation_is_told_once() -> None:
    door = admission(SharedCounts(None))
    told: list[int] = []
    door.on_release = lambda: told.append(door.in_flight)
    reservation = door.reserve(2)
    reservation.release()
    reservation.release()
    assert told == [0]


def test_several_answers_cost_what_they_are() -> None:
    door = admission(SharedCounts(None))
    door.reserve(4)
    with pytest.raises(OverloadedError):
        door.reserve(3)
    door.reserve(2)


def test_a_refused_list_hears_what_it_asked_for_and_how_much_room_there_is() -> None:
    door = admission(SharedCounts(None))
    door.reserve(4)
    with pytest.raises(OverloadedError, match=r"for 3 answers .* room for 2; .* ask for fewer"):
        door.reserve(3)
    door.reserve(2)
    with pytest.raises(OverloadedError, match=r"for 2 answers .* room for 0; .*waiting for it: 2"):
        door.reserve(2)
    with pytest.raises(OverloadedError) as refused:
        door.reserve(1)
    assert "answers" not in str(refused.value)


def test_what_could_never_be_let_in_is_the_clients_error() -> None:
    with pytest.raises(RequestError, match=r"asks for 7 answers.*at most 6") as caught:
        admission(SharedCounts(None)).reserve(7)
    assert caught.value.status == 400


def test_an_engine_in_which_requests_wait_has_no_more_room() -> None:
    """The engine's KV cache holds two requests, although its settings allow four."""
    counts = SharedCounts(None)
    door = admission(counts)
    door.reserve(4).hand_over(4)
    counts.set_num_requests(4)
    counts.report(0, running=2, waiting=2)
    assert door.num_waiting == 2
    with pytest.raises(OverloadedError, match="waiting for it: 2, at most 2 may"):
        door.check()
    counts.report(0, running=4, waiting=0)
    door.check()


def test_a_moment_between_two_steps_is_no_lack_of_room() -> None:
    """Three of four requests have just ended; the next step starts those that wait."""
    counts = SharedCounts(None)
    door = admission(counts)
    door.reserve(6).hand_over(6)
    counts.set_num_requests(6)
    counts.report(0, running=4, waiting=2)
    counts.set_num_requests(3)
    counts.report(0, running=1, waiting=2)
    assert door.num_waiting == 0


def test_api_processes_count_together(tmp_path: Path) -> None:
    doors = [
        admission(SharedCounts(tmp_path, process=number, num_processes=2), max_waiting=1)
        for number in range(2)
    ]
    assert len(fill(doors[0])) == 5
    with pytest.raises(OverloadedError):
        doors[1].check()
    assert doors[1].in_flight == 5


def test_started_processes_are_known_to_all(tmp_path: Path) -> None:
    counts = [SharedCounts(tmp_path, process=number, num_processes=2) for number in range(2)]
    counts[1].start()
    assert counts[0].num_started == 1


def test_each_engine_of_a_group_has_room_of_its_own() -> None:
    counts = SharedCounts(None, num_engines=2)
    counts.report(0, running=1, waiting=1)
    assert counts.room(4) == 1 + 4
    # Engines of a group on several machines do not begin with number 0.
    counts.report(3, running=2, waiting=5)
    assert counts.room(4) == 1 + 2


def test_retry_after_follows_the_rate_and_stays_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("prefmix.server.traffic.admission_control.time.monotonic", lambda: now)
    counts = SharedCounts(None)
    door = admission(counts, max_waiting=30)
    fill(door)

    def retry_after() -> int:
        with pytest.raises(OverloadedError) as caught:
            door.check()
        assert caught.value.response().headers["retry-after"] == str(caught.value.retry_after_s)
        return caught.value.retry_after_s

    assert 10 <= retry_after() <= 15  # nothing has been measured yet
    now += 5
    counts.add_finished(50)
    assert 4 <= retry_after() <= 5  # 31 in line, 10 a second, spread by half
    now += 5
    counts.add_finished(100_000)
    assert 1 <= retry_after() <= 2
    now += 10
    counts.add_finished(1)
    assert retry_after() <= MAX_RETRY_AFTER_S


def test_refusing_everything_is_timed_until_something_moves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = 1000.0
    monkeypatch.setattr("prefmix.server.traffic.admission_control.time.monotonic", lambda: now)
    doors = [
        admission(SharedCounts(tmp_path, process=number, num_processes=2)) for number in range(2)
    ]
    door, other = doors

    def refused() -> None:
        with pytest.raises(OverloadedError):
            door.check()

    held = [door.reserve(3), other.reserve(3)]
    now += 500
    assert door.refusing_s == 0, "full, but nobody was refused"
    refused()
    now += 100
    refused()
    assert (door.refusing_s, other.refusing_s) == (100, 0)
    held.pop().release()
    assert door.refusing_s == 0, "the other process has ended one"
    held.append(other.reserve(3))
    refused()
    now += 5
    assert door.refusing_s == 5
    held.pop(0).release()
    with pytest.raises(OverloadedError):
        door.reserve(5)
    now += 500
    assert door.refusing_s == 0, "a smaller request would be admitted"


def test_a_rate_forgets_what_is_long_past() -> None:
    rate = Rate()
    assert rate.update(0, 0.0) == 0
    assert rate.update(10, 1.0) == 10
    assert rate.update(11, 3600.0) == 0
    assert rate.update(31, 3602.0) == 10


@pytest.mark.parametrize(
    ("max_running", "kv_tokens", "max_model_len", "expected"),
    [
        (64, None, 512, 32),
        (64, 100_000, 512, 32),  # the cache holds more than may run
        (256, 66_000, 8192, 16),  # it holds 8 of full length, 32 of a quarter
        (256, 100, 8192, 1),
        (1, None, 512, 1),
    ],
)
def test_half_of_what_runs_at_once_may_wait(
    max_running: int, kv_tokens: int | None, max_model_len: int, expected: int
) -> None:
    found = default_max_waiting(
        max_running=max_running, kv_tokens=kv_tokens, max_model_len=max_model_len
    )
    assert found == expected
