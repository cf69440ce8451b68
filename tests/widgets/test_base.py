"""What a widget shows without a kernel, and that none of it is loaded before it is used."""

from __future__ import annotations

import base64
import subprocess
import sys
import warnings

import ipywidgets
import pytest
from matplotlib.figure import Figure

from atlas_kit import widgets
from atlas_kit.errors import MissingExtraError
from atlas_kit.widgets.base import Shown

LIVE = "application/vnd.jupyter.widget-view+json"


class Plain(Shown):
    def text(self) -> str:
        return 'a "plain" <thing>\nsecond line'

    def figure(self) -> Figure:
        figure = Figure(figsize=(1, 1))
        figure.add_subplot().plot([1, 2])
        return figure


class Box(Plain, ipywidgets.VBox):
    pass


def test_a_box_of_widgets_has_all_four_forms():
    data, metadata = Box()._repr_mimebundle_()
    assert set(data) == {LIVE, "text/plain", "text/html", "image/png"}
    assert metadata == {}
    assert data["text/plain"] == Plain().text()
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG\r\n")


def test_what_is_no_widget_has_the_static_forms():
    data, _ = Plain()._repr_mimebundle_()
    assert set(data) == {"text/plain", "text/html", "image/png"}


def test_a_name_in_a_script_that_the_font_lacks_gives_no_warning():
    class Named(Plain):
        def figure(self) -> Figure:
            figure = Figure()
            figure.text(0.5, 0.5, "\u6a21\u578b")
            return figure

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Named().png()
        Named().svg()


def test_html_holds_the_picture_and_runs_nothing():
    html = Plain().html()
    assert html.count("data:image/png;base64,") == 1
    assert "<script" not in html
    assert "http" not in html
    assert "&lt;thing&gt;" in html
    assert 'alt="a &quot;plain&quot; &lt;thing&gt;"' in html


def test_a_terminal_sees_the_text():
    assert repr(Box()) == Plain().text()


def test_every_name_is_exported_and_others_are_not():
    assert set(widgets.__all__) <= set(dir(widgets))
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = widgets.Nonsense


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "atlas_kit.widgets.matrix", raising=False)
    with pytest.raises(MissingExtraError, match=r"MatrixView needs.*atlas-kit\[notebook\]"):
        _ = widgets.MatrixView


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import atlas_kit, atlas_kit.widgets", ("numpy", "ipywidgets", "anywidget", "matplotlib")),
        (
            "from atlas_kit.widgets import MatrixView; MatrixView([[1, 2]])._repr_mimebundle_()",
            ("matplotlib", "atlas_kit.llama"),
        ),
    ],
)
def test_heavy_packages_wait_until_they_are_used(code, absent):
    check = f"{code}\nimport sys; print([name for name in {absent!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
