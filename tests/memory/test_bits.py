"""Any split of a stream, and any company, gives a session the same bits, whichever of its kernels BLAS chooses.

OpenBLAS chooses when it is loaded: by the processor, or by ``OPENBLAS_CORETYPE``. So each kernel gets a process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from atlas_kit.memory import Features

SWEEP = Path(__file__).with_name("bit_sweep.py")
#: By the value of OPENBLAS_CORETYPE: what a processor must have (Linux's words), and what OpenBLAS calls its choice.
KERNELS = {
    "Prescott": ({"pni"}, {"Prescott", "Katmai"}),
    "Nehalem": ({"sse4_2"}, {"Nehalem"}),
    "Sandybridge": ({"avx"}, {"Sandybridge"}),
    "Haswell": ({"avx2", "fma"}, {"Haswell"}),
    "Zen": ({"avx2", "fma"}, {"Zen", "Haswell"}),
    "SkylakeX": ({"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}, {"SkylakeX"}),
}


def abilities() -> set[str]:
    """Return what the processor can do, as Linux says; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def chooses_kernels() -> bool:
    """Tell whether this NumPy's BLAS is an OpenBLAS with kernels for several processors."""
    found = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return "DYNAMIC_ARCH" in found.get("openblas configuration", "")


def swept(**environment: str) -> dict:
    """Run the sweep with only these of OpenBLAS's variables; return what it says."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    done = subprocess.run(
        [sys.executable, SWEEP],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.stdout, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["failed"] == {}
    assert found["compared"] > 4000
    assert done.returncode == 0, done.stderr
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_bits_under_each_kernel(kernel: str) -> None:
    pytest.importorskip("threadpoolctl")
    needs, names = KERNELS[kernel]
    if not chooses_kernels():
        pytest.skip("NumPy's BLAS has kernels for one processor only")
    if not needs <= abilities():
        pytest.skip(f"this processor cannot run the kernels for {kernel}")
    blas = swept(OPENBLAS_CORETYPE=kernel, OPENBLAS_NUM_THREADS="1")["blas"]
    assert {library["architecture"] for library in blas} <= names
    assert blas


@pytest.mark.slow
@pytest.mark.parametrize("threads", [{}, {"OPENBLAS_NUM_THREADS": "1"}], ids=["all threads", "one thread"])
def test_bits_as_the_processor_is(threads: dict[str, str]) -> None:
    pytest.importorskip("threadpoolctl")
    swept(**threads)


@pytest.mark.parametrize(("d", "m"), [(24, 8), (256, 64), (2048, 64), (5, 1), (1, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_projected_key_does_not_know_its_neighbours(d: int, m: int, dtype: str) -> None:
    """On the kernels for Haswell, a row's sum depended on its place in a block of 16."""
    front = Features(projection=m)
    constants = {name: array.astype(dtype) for name, array in front.constants(d, seed=1).items()}
    key = np.random.default_rng(0).standard_normal(d).astype(dtype)
    alone = front.project(key[None], constants)
    for many in (2, 12, 16, 17, 33):
        keys = np.random.default_rng(many).standard_normal((2, many, d)).astype(dtype)
        for place in range(many):
            keys[:, place] = key
            found = front.project(keys, constants)[:, place]
            assert found[0].tobytes() == found[1].tobytes() == alone[0].tobytes()
    np.testing.assert_allclose(alone[0], key @ constants["projection"], rtol=1e-4, atol=1e-4)


def test_no_keys_are_projected_to_none() -> None:
    empty = np.empty((3, 0, 4), np.float32)
    constants = {"projection": np.ones((4, 2), np.float32)}
    assert Features(projection=2).project(empty, constants).shape == (3, 0, 2)
