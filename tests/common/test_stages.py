import threading
import time

import pytest
from hypothesis import given, strategies as st

from sona_pipeline.common.stages import ahead

depths = pytest.mark.parametrize("depth", [0, 1, 2, 5])
WAIT = 10
"""Seconds after which a test gives a thread up."""


def until(condition) -> bool:
    """Whether `condition` comes true within a while."""
    end = time.monotonic() + WAIT
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return condition()


@given(items=st.lists(st.integers(), max_size=20), depth=st.integers(0, 25))
def test_results_are_those_of_map_in_order(items, depth):
    assert list(ahead(lambda x: 3 * x, items, depth)) == [3 * x for x in items]


def test_stages_can_be_chained():
    first = ahead(lambda x: x + 1, range(20), 2)
    assert list(ahead(str, ahead(lambda x: 2 * x, first, 0), 3)) == [str(2 * x + 2) for x in range(20)]


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("taken", [1, 2, 4])
def test_no_more_than_depth_results_wait_for_a_slow_reader(depth, taken):
    finished = []
    results = ahead(lambda x: finished.append(x) or x, range(100), depth)
    for _ in range(taken):
        next(results)
    assert until(lambda: len(finished) == taken + depth)
    time.sleep(0.05)
    assert len(finished) == taken + depth
    results.close()


@pytest.mark.parametrize("depth", [1, 3])
def test_items_are_taken_only_when_there_is_room_for_their_results(depth):
    taken = []
    results = ahead(lambda x: x, (taken.append(k) or k for k in range(100)), depth)
    for count in range(1, 6):
        next(results)
        assert len(taken) == count + depth
    results.close()


def test_reader_and_function_work_at_the_same_time():
    meeting = threading.Barrier(2, timeout=WAIT)
    results = ahead(lambda x: (meeting.wait() if x else None, x)[1], range(3), 1)
    assert next(results) == 0
    meeting.wait()
    assert next(results) == 1
    meeting.wait()
    assert list(results) == [2]


def test_depth_0_works_in_the_readers_thread_and_only_when_asked():
    seen = []
    results = ahead(lambda x: seen.append((x, threading.get_ident())), range(3), 0)
    next(results)
    assert seen == [(0, threading.get_ident())]
    assert len(list(results)) == 2


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_all_items_are_worked_on_in_one_other_thread(depth):
    threads = set(ahead(lambda _: threading.get_ident(), range(10), depth))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


@depths
def test_an_error_is_raised_where_its_result_would_come(depth):
    results = ahead(lambda x: 12 // (3 - x), range(10), depth)
    assert [next(results) for _ in range(3)] == [4, 6, 12]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []


@depths
def test_an_error_of_the_items_comes_through(depth):
    def items():
        yield 1
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(ahead(lambda x: x, items(), depth))


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_a_reader_that_stops_lets_what_was_handed_over_finish_and_starts_no_more(depth):
    started, finished, go = [], [], threading.Event()

    def slow(x):
        started.append(x)
        if x:
            go.wait(WAIT)
        finished.append(x)

    before = threading.active_count()
    results = ahead(slow, range(100), depth)
    next(results)
    assert until(lambda: len(started) > 1)
    threading.Timer(0.05, go.set).start()
    results.close()
    assert started == finished == list(range(1 + depth))
    assert until(lambda: threading.active_count() == before)


def test_an_error_starts_no_more_items():
    started = []

    def work(x):
        started.append(x)
        time.sleep(0.01)
        if x == 1:
            raise ValueError("one")

    with pytest.raises(ValueError, match="one"):
        list(ahead(work, range(100), 2))
    assert len(started) <= 1 + 1 + 2
