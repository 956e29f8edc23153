"""Reading ahead: what was begun is handed out, once, and a wrong guess costs nothing but the reading."""

import threading

import pytest

from ttt_moshi.data.prefetch import Prefetch


def test_what_was_begun_is_read_in_the_background_and_only_once():
    calls, here = [], threading.get_ident()

    def read(cursor, size):
        calls.append((cursor, threading.get_ident() == here))
        return cursor * size

    ahead = Prefetch(read)
    for cursor in (0, 2, 4, 2):
        ahead.begin(cursor, 2)
    assert [ahead.take(cursor, 2) for cursor in (4, 0, 2)] == [8, 0, 4]
    assert calls == [(0, False), (2, False), (4, False)]
    assert ahead.take(2, 2) == 4, "asked for again, it is read again"
    assert calls[-1] == (2, True)
    ahead.close()


def test_a_wrong_guess_is_forgotten():
    started, go_on, calls = threading.Event(), threading.Event(), []

    def read(cursor, size):
        calls.append(cursor)
        if cursor == 10:
            started.set()
            go_on.wait(10)
        return cursor

    ahead = Prefetch(read)
    ahead.begin(10, 1)
    ahead.begin(11, 1)
    assert started.wait(10)
    assert ahead.take(0, 1) == 0
    go_on.set()
    ahead.close()
    assert calls == [10, 0], "11 was waiting and is not read any more"
    assert ahead.take(11, 1) == 11


def test_errors_come_out_where_the_batch_is_asked_for():
    def read(cursor, size):
        raise ValueError(f"batch {cursor} is broken")

    ahead = Prefetch(read)
    ahead.begin(3, 1)
    with pytest.raises(ValueError, match="batch 3"):
        ahead.take(3, 1)
    ahead.close()
