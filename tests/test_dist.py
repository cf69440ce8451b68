"""What ``make dist`` looks for in the wheel and in the source archive."""

from __future__ import annotations

import zipfile

import pytest

from tools import dist

ARCHIVE = sorted(
    [
        *dist.package_files(),
        *("formats/README.md", "LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "PKG-INFO"),
    ]
)
WHEEL = sorted(
    [
        *dist.package_files(),
        "atlas_kit-1.dist-info/METADATA",
        "atlas_kit-1.data/data/share/jupyter/labextensions/atlas-kit/package.json",
    ]
)


def test_a_good_pair_has_no_faults():
    assert dist.faults(ARCHIVE, WHEEL) == []


@pytest.mark.parametrize("name", ["atlas_kit/py.typed", "atlas_kit/jupyter/server-config.json"])
def test_a_missing_file_is_a_fault(name):
    assert dist.faults(set(ARCHIVE) - {name}, WHEEL) == [f"the archive lacks {name}"]
    assert dist.faults(ARCHIVE, set(WHEEL) - {name}) == [f"the wheel lacks {name}"]


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "pyproject.toml"])
def test_an_archive_can_be_read_and_built(name):
    assert dist.faults(set(ARCHIVE) - {name}, WHEEL) == [f"the archive lacks {name}"]


def test_what_does_not_belong_there_is_a_fault():
    assert "the archive holds notebooks" in dist.faults([*ARCHIVE, "notebooks/README.md"], WHEEL)
    assert "the wheel holds formats" in dist.faults(ARCHIVE, [*WHEEL, "formats/README.md"])
    compiled = "atlas_kit/__pycache__/x.pyc"
    assert dist.faults(ARCHIVE, [*WHEEL, compiled]) == [f"the wheel holds {compiled}"]


def test_a_failing_program_ends_it_with_its_words():
    with pytest.raises(SystemExit, match="No module named no_such"):
        dist.run(dist.sys.executable, "-m", "no_such")


@pytest.mark.slow
def test_the_archive_builds_the_wheel(tmp_path):
    archive, wheel = dist.build(tmp_path)
    assert dist.faults(dist.contents(archive), dist.contents(wheel)) == []
    with zipfile.ZipFile(wheel) as opened:
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in opened.namelist())
