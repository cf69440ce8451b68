"""Bytes that are put away on disk, and come back as they were."""

from __future__ import annotations

import gc
import os

import pytest

from atlas_kit.widgets.shelf import Shelf


def test_places_that_are_free_are_used_again(tmp_path):
    shelf = Shelf(tmp_path)
    kept = [shelf.put(bytes([number]) * size) for number, size in enumerate((100, 50, 100, 0))]
    assert shelf.size == 250
    del kept[1]
    gc.collect()
    kept.append(shelf.put(b"x" * 40))  # where the second was
    kept.append(shelf.put(b"y" * 60))
    assert (shelf.size, os.fstat(shelf._file.fileno()).st_size) == (300, 310)
    assert [one.read()[:1] for one in kept] == [b"\0", b"\2", b"", b"x", b"y"]
    assert [len(one.read()) for one in kept] == [100, 100, 0, 40, 60] == [len(one) for one in kept]
    assert list(tmp_path.iterdir()) == []  # it has no name
    kept.clear()
    gc.collect()
    assert os.fstat(shelf._file.fileno()).st_size == 0


def test_without_a_disk_they_stay_in_memory(tmp_path, monkeypatch):
    kept = Shelf(tmp_path / "nowhere").put(b"to be " * 1000)
    assert kept.read() == b"to be " * 1000
    assert len(kept._packed) < 100

    def full(*_):
        raise OSError(28, "No space left on device")

    shelf = Shelf(tmp_path)
    first = shelf.put(b"before")
    monkeypatch.setattr(os, "pwrite", full)
    assert shelf.put(b"after").read() == b"after"
    assert (first.read(), shelf.size) == (b"before", 6)


def test_what_was_cut_off_is_an_error(tmp_path):
    shelf = Shelf(tmp_path)
    kept = shelf.put(b"to be or not to be")
    os.ftruncate(shelf._file.fileno(), 5)
    with pytest.raises(OSError, match="gone"):
        kept.read()
