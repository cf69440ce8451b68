"""llama.cpp's threads sleep when they wait for long: what libgomp itself says of its settings, in child processes."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from atlas_kit.llama import waiting

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="libgomp is a Linux library")

LOAD = """
import ctypes, os
from atlas_kit.llama.waiting import LIBRARY, brief_waiting
with brief_waiting() as note:
    ctypes.CDLL(LIBRARY)
print(note, os.environ.get("GOMP_SPINCOUNT"))
"""
ENGINE = """
import os
from atlas_kit.llama import open_engine
print(*open_engine({path!r}).notes, os.environ.get("GOMP_SPINCOUNT"))
"""
#: The CPU time that threads take after a decode, while nothing is done.
IDLE = """
import time
from atlas_kit.llama import open_engine
from atlas_kit.llama.engine import Feed
engine, spent = open_engine({path!r}, n_threads=2), 0
for position in range(12):
    engine.decode([Feed(0, [position + 5], position, 1)])
    before = time.process_time()
    time.sleep(0.05)
    spent += time.process_time() - before
print(spent)
"""


def child(program, **variables):
    """Run a program; return what it printed, and how long libgomp says that its threads spin (its own word)."""
    environment = {name: value for name, value in os.environ.items() if name not in waiting.VARIABLES}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", **variables}
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    said = re.search(r"GOMP_SPINCOUNT = '(\w+)'", ran.stderr)
    if said is None:
        pytest.skip("this process has no libgomp to ask")
    return ran.stdout.strip(), said[1]


def has_libgomp():
    program = f"import ctypes; ctypes.CDLL({waiting.LIBRARY!r})"
    return not subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode


needs_libgomp = pytest.mark.skipif(not has_libgomp(), reason="there is no libgomp here")
needs_llama = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"
)


@needs_libgomp
def test_it_is_set_before_the_library_loads_and_taken_back():
    assert child(LOAD) == ("None None", str(waiting.SPINS))


@needs_libgomp
@pytest.mark.parametrize(
    ("variables", "spins"),
    [
        ({"GOMP_SPINCOUNT": "77"}, "77"),
        ({"OMP_WAIT_POLICY": "passive"}, "0"),
        ({"OMP_WAIT_POLICY": "active"}, "30000000000"),
        ({"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "5"}, "5"),
    ],
)
def test_what_the_user_has_set_wins(variables, spins):
    assert child(LOAD, **variables) == (f"None {variables.get('GOMP_SPINCOUNT')}", spins)


@needs_libgomp
def test_too_late_is_said():
    early = f"import ctypes; ctypes.CDLL({waiting.LIBRARY!r})"
    said, spins = child(early + LOAD)
    assert said == f"{waiting.LATE} None"
    assert spins == "300000"
    assert child(early + LOAD, GOMP_SPINCOUNT="77") == ("None 77", "77")


def test_nothing_stays_in_the_environment_when_loading_fails(monkeypatch):
    monkeypatch.setattr(waiting, "is_loaded", lambda: False)
    for name in waiting.VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def load():
        with waiting.brief_waiting():
            assert os.environ["GOMP_SPINCOUNT"] == str(waiting.SPINS)
            raise ImportError

    with pytest.raises(ImportError):
        load()
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.parametrize(
    ("late", "build", "said"),
    [
        (None, "CPU : SSE3 = 1 | OPENMP = 1 | REPACK = 1 | ", []),
        (waiting.LATE, "CPU : SSE3 = 1 | OPENMP = 1 | REPACK = 1 | ", [waiting.LATE]),
        (None, "CPU : SSE3 = 1 | REPACK = 1 | ", [waiting.WITHOUT]),
        (waiting.LATE, "CPU : SSE3 = 1 | REPACK = 1 | ", [waiting.WITHOUT]),
    ],
)
def test_what_is_said_of_a_build(late, build, said):
    assert waiting.notes(late, build) == said


@needs_llama
def test_a_model_is_loaded_so(random_model):
    assert child(ENGINE.format(path=str(random_model()))) == ("None", str(waiting.SPINS))


@needs_llama
def test_a_model_notes_that_it_came_too_late(random_model):
    early = f"import ctypes; ctypes.CDLL({waiting.LIBRARY!r})"
    said, _ = child(early + ENGINE.format(path=str(random_model())))
    assert said == f"{waiting.LATE} None"
    said, _ = child(early + ENGINE.format(path=str(random_model())), OMP_WAIT_POLICY="passive")
    assert said == "None"


@needs_llama
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="threads that outnumber the processors never spin")
def test_threads_that_wait_take_little_cpu_time(random_model):
    program = IDLE.format(path=str(random_model()))
    ours, _ = child(program)
    spinning, _ = child(program, GOMP_SPINCOUNT="300000")  # libgomp's own
    assert float(ours) < float(spinning) / 2
