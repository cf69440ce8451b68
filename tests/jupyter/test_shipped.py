"""What the wheel puts where Jupyter looks for it."""

from __future__ import annotations

import json
from pathlib import Path

import atlas_kit
from atlas_kit import jupyter
from tests.jupyter.conftest import Unpacked


def test_the_wheel_has_both_extensions(wheel: Unpacked):
    extension = wheel.data / "share" / "jupyter" / "labextensions" / "atlas-kit"
    package = json.loads((extension / "package.json").read_text(encoding="utf-8"))
    assert (extension / package["jupyterlab"]["_build"]["load"]).is_file()
    assert package["version"] == atlas_kit.__version__
    config = wheel.data / "etc" / "jupyter" / "jupyter_server_config.d" / "atlas_kit.json"
    (enabled,) = json.loads(config.read_text(encoding="utf-8"))["ServerApp"]["jpserver_extensions"]
    assert [point["module"] for point in jupyter._jupyter_server_extension_points()] == [enabled]


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_wheel_has_every_script_and_style(wheel: Unpacked):
    for folder in ("jupyter/static", "widgets/static", "server/static"):
        here = Path(atlas_kit.__file__).parent / folder
        shipped = wheel.packages / "atlas_kit" / folder
        assert files_in(shipped) == files_in(here)


def test_jupyter_labextension_develop_finds_the_extension():
    (paths,) = jupyter._jupyter_labextension_paths()
    assert (Path(jupyter.__file__).parent / paths["src"] / "package.json").is_file()
    assert paths["dest"] == "atlas-kit"
