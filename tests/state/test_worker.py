"""A worker does one job at a time, the urgent first, and ends when it is told to."""

import threading
import time

import pytest
import torch

from transpector.state.worker import BACKGROUND, INTERACTIVE, Worker


@pytest.fixture
def worker():
    worker = Worker("test")
    yield worker
    worker.stop()


def busy(worker):
    """Occupy the worker; returns what lets it go on."""
    began, go = threading.Event(), threading.Event()
    worker.submit(lambda: (began.set(), go.wait(10)))
    assert began.wait(10)
    return go.set


def test_jobs_run_one_at_a_time_on_one_thread(worker):
    inside, threads = [], set()

    def job():
        inside.append(1)
        threads.add(threading.current_thread())
        time.sleep(0.002)
        assert len(inside) == 1
        inside.pop()

    futures = []
    callers = [
        threading.Thread(target=lambda: futures.extend(worker.submit(job) for _ in range(5)))
        for _ in range(4)
    ]
    [caller.start() for caller in callers]
    [caller.join() for caller in callers]
    assert len(futures) == 20
    for future in futures:
        future.result(10)
    assert len(threads) == 1 and threads != {threading.current_thread()}


def test_the_urgent_go_before_what_waits_in_the_background(worker):
    go, order = busy(worker), []
    jobs = [
        worker.submit(lambda n=n, priority=priority: order.append((priority, n)), priority=priority)
        for n in range(3)
        for priority in (BACKGROUND, INTERACTIVE)
    ]
    assert worker.queued == 6
    go()
    for job in jobs:
        job.result(10)
    assert order == [(priority, n) for priority in (INTERACTIVE, BACKGROUND) for n in range(3)]


def test_a_delayed_job_waits_and_lets_others_pass(worker):
    order, began = [], time.monotonic()
    late = worker.submit(lambda: order.append("late"), delay=0.2)
    worker.submit(lambda: order.append("now"), priority=BACKGROUND).result(10)
    late.result(10)
    assert order == ["now", "late"]
    assert time.monotonic() - began >= 0.2


def test_a_failing_job_hands_its_error_over_and_the_next_one_runs(worker):
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 / 0)
    assert worker.call(lambda: 7) == 7


def test_a_call_from_the_worker_s_own_thread_runs_at_once(worker):
    assert not worker.is_current
    assert worker.call(lambda: (worker.is_current, worker.call(lambda: 7))) == (True, 7)


def test_jobs_run_without_gradients_whatever_the_caller_does(worker):
    with torch.enable_grad():
        assert worker.call(torch.is_grad_enabled) is False


def test_a_worker_without_a_job_has_no_thread():
    before = threading.active_count()
    Worker("idle").stop()
    assert threading.active_count() == before


def test_stopping_cancels_what_waits_and_ends_the_thread_after_the_job_under_way(worker):
    go = busy(worker)
    waiting = worker.submit(lambda: 1)
    worker.stop()
    assert waiting.cancelled()
    go()
    worker._thread.join(10)
    assert not worker._thread.is_alive()
    with pytest.raises(RuntimeError, match="has stopped"):
        worker.submit(lambda: 1)


def test_nothing_of_a_finished_job_is_kept(worker):
    import weakref

    class Value:
        pass

    value = Value()
    gone = weakref.ref(value)
    worker.submit(lambda value=value: value).result(10)
    del value
    deadline = time.monotonic() + 5
    while gone() is not None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert gone() is None
