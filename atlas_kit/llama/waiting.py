"""How llama.cpp's threads wait for each other: a moment awake, then asleep.

They meet hundreds of times per token, at OpenMP's barriers. GNU's OpenMP (libgomp) lets a waiting thread spin for
milliseconds before it sleeps. As soon as other processes keep the processors busy, the thread that is waited for has
no processor, because those that wait have it, and generating comes to a tenth of its speed. Sleeping at once
(``OMP_WAIT_POLICY=passive``) is no way out: where waking is dear, as on virtual machines, a small model then runs at a
tenth of its speed on a quiet machine. Spinning about as long as sleeping and waking would take keeps the speed on a
quiet machine and half of it on a busy one (``tools/bench/runtime.py``, group ``neighbours``). Where two of them have
come to share one processor, every barrier takes as long as one of them spins: the shorter, the less that costs.

Builds without OpenMP have barriers at which threads spin without end, whatever the thread pool's ``poll`` is, and come
to a tenth of their speed; nothing helps them from outside, so the user is told.

libgomp reads its environment once, when it is loaded. So the setting is made around that moment and taken back: child
processes do not inherit it. Knows nothing about models.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

#: What a user may have set himself; then nothing is changed.
VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
#: Looks at a barrier before a thread sleeps: 0.05 to 0.1 ms. libgomp's own number is 300,000.
#: From 1,000 to 20,000 the measured speeds hardly differ, quiet or busy; below, waking costs a small model a third. But
#: a token for which two threads share one processor took SmolLM2 190 ms with 10,000, and 50 ms with 2,000.
SPINS = 2_000
LIBRARY = "libgomp.so.1"
LATE = (
    "another package had loaded OpenMP before llama.cpp, so its threads wait spinning, which is slow beside busy "
    f"processes; start Python with GOMP_SPINCOUNT={SPINS} in the environment to avoid it"
)

WITHOUT = (
    "this llama.cpp was built without OpenMP, so its threads wait spinning, which is slow beside busy processes; "
    "a build with OpenMP, as GGML_OPENMP=ON gives it, avoids it"
)


def is_loaded() -> bool:
    """Whether this process has already loaded the libgomp that llama.cpp would use.

    Packages that bring a copy under a name of their own (scikit-learn, PyTorch) do not count: llama.cpp loads another.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        ctypes.CDLL(LIBRARY, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def brief_waiting() -> Iterator[str | None]:
    """Load llama.cpp inside this block, and its threads sleep when they wait for long.

    Yields
    ------
    str or None
        What to tell the user where it is too late to say so; None where all is well, or he has chosen himself.
    """
    if any(name in os.environ for name in VARIABLES):
        yield None
    elif is_loaded():
        yield LATE
    else:
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
        try:
            yield None
        finally:
            os.environ.pop("GOMP_SPINCOUNT", None)


def notes(late: str | None, system_info: str) -> list[str]:
    """Return what a user should know about the loaded library's threads.

    Parameters
    ----------
    late
        What ``brief_waiting`` gave.
    system_info
        What llama.cpp says of its own build.
    """
    if "OPENMP = 1" in system_info:
        return [late] if late else []
    return [WITHOUT] if sys.platform.startswith("linux") else []
