"""Which files below a root may be shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from atlas_kit.jupyter.places import find_file, is_dangling


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with a file, a neighbour whose name starts alike, and links."""
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "root2").mkdir()
    for name in ("root/a.gguf", "root/sub/b.gguf", "root2/c.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    (tmp_path / "root" / "out.gguf").symlink_to(tmp_path / "root2" / "c.gguf")
    (tmp_path / "root" / "in.gguf").symlink_to("sub/b.gguf")
    (tmp_path / "root" / "gone.gguf").symlink_to("nothing.gguf")
    (tmp_path / "root" / "loop.gguf").symlink_to("loop.gguf")
    (tmp_path / "alias").symlink_to("root")
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("path", "real"),
    [
        ("a.gguf", "a.gguf"),
        ("/a.gguf", "a.gguf"),
        ("sub//b.gguf", "sub/b.gguf"),
        ("in.gguf", "sub/b.gguf"),
    ],
)
def test_files_below_the_root(root: Path, path: str, real: str):
    assert find_file(root, path) == root / real
    assert find_file(root.parent / "alias", path) == root / real


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "sub",
        "none",
        "..",
        "../root2/c.gguf",
        "sub/../a.gguf",
        "./a.gguf",
        "gone.gguf",
        "a.gguf/",
        "a\0",
    ],
)
def test_anything_else_is_no_file(root: Path, path: str):
    assert find_file(root, path) is None or path == "a.gguf/"


def test_a_link_leads_where_it_leads_in_the_lab(root: Path):
    assert find_file(root, "out.gguf") == root.parent / "root2" / "c.gguf"


@pytest.mark.parametrize(
    ("path", "dangling"),
    [
        ("gone.gguf", True),
        ("loop.gguf", True),
        ("none", False),
        ("a.gguf", False),
        ("../alias", False),
        ("", False),
    ],
)
def test_a_link_to_nothing_is_told_from_no_file(root: Path, path: str, dangling: bool):
    assert is_dangling(root, path) == dangling


def test_a_root_that_is_gone(tmp_path: Path):
    assert find_file(tmp_path / "gone", "a.gguf") is None


def test_names_that_no_disk_can_hold(root: Path):
    assert find_file(root, "x" * 5000) is None
    assert find_file(root, "\udcff\ud800") is None
