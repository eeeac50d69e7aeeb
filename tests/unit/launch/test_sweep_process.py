"""How a trial's process and its keeper wait for each other."""

from __future__ import annotations

import os
import threading

import pytest

from rayloom.launch.sweeping.process import Keeper


@pytest.fixture
def keeper():
    reading, writing = os.pipe()
    with os.fdopen(reading) as orders, os.fdopen(writing, "w", buffering=1) as listening:
        yield Keeper(orders), orders, listening


def following(keeper, monkeypatch):
    monkeypatch.setattr(os, "_exit", lambda code: None)
    thread = threading.Thread(target=keeper.follow)
    thread.start()
    return thread


def waiting(keeper):
    thread = threading.Thread(target=keeper.wait)
    thread.start()
    return thread


def test_each_time_that_the_keeper_listens_lets_one_validation_through(keeper, monkeypatch):
    keeper, _, listening = keeper
    follower = following(keeper, monkeypatch)
    listening.write("\n\n")
    for _ in range(2):
        waiting(keeper).join(10)
    third = waiting(keeper)
    third.join(0.2)
    assert third.is_alive()
    listening.write("\n")
    third.join(10)
    assert not third.is_alive()
    listening.close()
    follower.join(10)
    assert not follower.is_alive()


def test_a_process_that_is_told_to_stop_waits_no_more(keeper):
    keeper, _, _ = keeper
    thread = waiting(keeper)
    keeper.stop_waiting()
    thread.join(10)
    assert not thread.is_alive()
    keeper.wait()
