"""What a cell gives behind a line that opens it."""

from __future__ import annotations

import pytest

pytest.importorskip("IPython")

from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from atlas_kit.widgets import folded


@pytest.fixture(autouse=True)
def shell():
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


def shown(captured):
    (output,) = captured.outputs
    assert captured.stdout == ""
    return output.data


def test_what_is_printed_is_folded_and_escaped():
    with capture_output() as captured, folded():
        print("1 < 2")
    data = shown(captured)
    assert data["text/plain"] == "1 < 2"
    assert data["text/html"].startswith("<details><summary")
    assert "<details open" not in data["text/html"]
    assert "1 &lt; 2" in data["text/html"]
    assert "What it gives" in data["text/html"]


def test_messages_that_come_meanwhile_find_the_publisher_that_they_ask_for(shell):
    heard = []
    shell.display_pub.set_parent = heard.append  # as a kernel's, which is asked in another thread
    with folded():
        shell.display_pub.set_parent({"header": 1})
    assert heard == [{"header": 1}]


def test_pictures_and_html_are_folded_with_it():
    from IPython.display import HTML, Image, display

    with capture_output() as captured, folded("Pictures"):
        display(HTML("<b>bold</b>"), Image(b"\x89PNG\r\n\x1a\n", format="png"))
    data = shown(captured)
    assert "<b>bold</b>" in data["text/html"]
    assert "data:image/png;base64,iVBORw0KGgo=" in data["text/html"]


def test_what_leads_to_an_error_is_not_folded():
    def cell():
        with folded():
            print("before it")
            print(1 / 0)

    with capture_output() as captured, pytest.raises(ZeroDivisionError):
        cell()
    assert "before it" in captured.stdout


def test_nothing_gives_nothing_to_see():
    with capture_output() as captured, folded():
        pass
    assert "<pre" not in shown(captured)["text/html"]
