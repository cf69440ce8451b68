"""20,000 mutants of the sample files: only our errors come out, in a second and a few times the file's size.

In shards, so that ``pytest -n 2`` spreads them, and in processes of their own, so that a mutant that takes
all memory or never ends is a failing test. ``make fuzz`` runs more; failing mutants are kept in
``fuzz-failures/``.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from atlas_kit.errors import AtlasError
from atlas_kit.formats.atlas import MemoryFile
from tools import fuzz

SHARDS = 10
MUTANTS = 2_100  # in each
SEED = 20_000


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_mutants(repository: Path, shard: int) -> None:
    pytest.importorskip("cryptography")
    done = subprocess.run(
        [sys.executable, "tools/fuzz.py", "--quiet", "--mutants", str(MUTANTS), "--seed", str(SEED + shard)],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.match(rf"{MUTANTS} mutants of seed {SEED + shard}, 0 failures", done.stdout)


def test_mutants_reach_deep_places() -> None:
    """With its checksums made right again an untouched file is itself, and mutants get past the header."""
    seeds = [seed for seed in fuzz.corpus() if seed.name.startswith("built") and "3" not in seed.name]
    for seed in seeds:
        data = bytearray(seed.data)
        fuzz.resum(data)
        assert bytes(data) == seed.data
    past_the_header = 0
    for number in range(300):
        rng = random.Random(number)
        data = bytearray(seeds[2].data)
        fuzz._number(rng, data, b"")
        fuzz.resum(data)
        try:
            memory = MemoryFile.open(bytes(data))
            past_the_header += 1
            list(memory)
        except AtlasError:
            pass
    assert past_the_header > 150


def test_failures_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch itself: foreign errors, slowness, greed and hangs are failures, our errors are not."""

    def foreign(*_: object) -> None:
        raise KeyError("not ours" + chr(0))

    def ours(*_: object) -> None:
        raise AtlasError("ours")

    def greedy(*_: object) -> None:
        bytearray(b"x") * (200 << 20)

    watch = fuzz.Watch(tmp_path)
    outcomes = [watch.run(step, b"data", {}, "n", ".atlas") for step in (foreign, ours, greedy)]
    monkeypatch.setattr(fuzz, "SECONDS", -1.0)
    outcomes.append(watch.run(ours, b"data", {}, "n", ".atlas"))
    assert outcomes == [False, True, False, False]
    assert ["KeyError" in watch.failures[0], "large" in watch.failures[1], "slow" in watch.failures[2]] == [
        True
    ] * 3
    fuzz.keep(tmp_path / "kept", "n-1", "atlas", b"data", "why")
    assert (tmp_path / "kept" / "n-1.atlas").read_bytes() == b"data"
