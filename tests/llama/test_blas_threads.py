"""One BLAS thread while anyone needs it: counted, and what was there before afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from atlas_kit.llama.blas_threads import SharedLimit, one_blas_thread


class Threads:
    """A process's number of BLAS threads, and how often it was changed."""

    def __init__(self, count):
        self.count, self.changes = count, 0

    def impose(self):
        before, self.count = self.count, 1
        self.changes += 1

        def restore():
            self.count = before
            self.changes += 1

        return restore


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_the_last_one_to_go_restores(order):
    threads = Threads(8)
    limit = SharedLimit(threads.impose)
    holders = [limit.hold() for _ in order]
    for i in order:
        assert threads.count == 1
        holders[i]()
    assert (threads.count, threads.changes) == (8, 2)


def test_letting_go_twice_is_once():
    threads = Threads(8)
    limit = SharedLimit(threads.impose)
    first, second = limit.hold(), limit.hold()
    first()
    first()
    assert threads.count == 1
    second()
    second()
    assert threads.count == 8


def test_it_begins_again_with_what_is_there_then():
    threads = Threads(8)
    limit = SharedLimit(threads.impose)
    limit.hold()()
    threads.count = 3
    let_go = limit.hold()
    assert threads.count == 1
    let_go()
    assert threads.count == 3


def test_a_limit_that_cannot_be_imposed_is_held_by_nobody():
    threads, fails = Threads(8), [True]

    def impose():
        if fails.pop() if fails else False:
            raise RuntimeError("no")
        return threads.impose()

    limit = SharedLimit(impose)
    with pytest.raises(RuntimeError, match="no"):
        limit.hold()
    let_go = limit.hold()
    assert threads.count == 1
    let_go()
    assert threads.count == 8


def test_many_threads_at_once():
    threads = Threads(8)
    limit = SharedLimit(threads.impose)
    seen, start = set(), threading.Barrier(8)

    def work():
        start.wait()
        for _ in range(300):
            let_go = limit.hold()
            seen.add(threads.count)
            let_go()

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert seen == {1}
    assert threads.count == 8
    assert threads.changes % 2 == 0


def blas_threads():
    """Return what each BLAS library of this process uses."""
    info = pytest.importorskip("threadpoolctl").threadpool_info()
    return [library["num_threads"] for library in info if library["user_api"] == "blas"]


@pytest.fixture
def several():
    """Two BLAS threads, whatever the machine has."""
    np.ones((2, 2)) @ np.ones((2, 2))
    threadpoolctl = pytest.importorskip("threadpoolctl")
    with threadpoolctl.threadpool_limits(limits=2, user_api="blas"):
        before = blas_threads()
        if not any(count > 1 for count in before):
            pytest.skip("NumPy's BLAS has one thread only")
        yield before


def test_the_real_thing(several):
    first, second = one_blas_thread(), one_blas_thread()
    assert set(blas_threads()) == {1}
    first()
    assert set(blas_threads()) == {1}
    second()
    assert blas_threads() == several


def test_two_models_hold_one_limit(several, real, random_model):
    first, second = real(path=random_model()), real(path=random_model(seed=1))
    assert set(blas_threads()) == {1}
    first.close()
    first.close()
    assert set(blas_threads()) == {1}
    second.close()
    assert blas_threads() == several


def test_a_model_that_is_refused_leaves_nothing(several, tmp_path):
    from atlas_kit.errors import AtlasError
    from atlas_kit.llama import open_engine

    path = tmp_path / "no.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(AtlasError):
        open_engine(path)
    assert blas_threads() == several


BEGUN = """
import os
from atlas_kit.llama.blas_threads import one_blas_thread, one_thread_from_the_start
{before}
with one_thread_from_the_start():
    import numpy
import threadpoolctl
def threads():
    return {{one["num_threads"] for one in threadpoolctl.threadpool_info() if one["user_api"] == "blas"}}
was = threads()
let_go = one_blas_thread()
held = threads()
let_go()
print(was, held, threads() == was, os.environ.get("OPENBLAS_NUM_THREADS"))
"""


@pytest.mark.parametrize(
    ("before", "chosen", "told"),
    [
        ("", None, "{1} {1} True None"),
        (
            "import numpy",
            None,
            "{1} True None",
        ),  # it has its threads already, which are taken while they are not wanted
        ("", "2", "{1} True 2"),
        ("", "1", "{1} {1} True 1"),
    ],
)
def test_numpy_makes_no_threads_where_none_are_wanted_from_the_start(before, chosen, told):
    """The user's own choice counts, and nothing of it is left for child processes."""
    environment = {
        n: v for n, v in os.environ.items() if n not in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
    }
    if chosen is not None:
        environment["OPENBLAS_NUM_THREADS"] = chosen
    done = subprocess.run(
        [sys.executable, "-c", BEGUN.format(before=before)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip().endswith(told)
