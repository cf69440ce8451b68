"""Lines as SVG and with matplotlib: the same points in both, and nothing in a name becomes markup."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ElementTree

import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from atlas_kit.widgets.chart import HEIGHT, WIDTH, Chart, Line, draw, style, svg, ticks

NAMESPACE = {"s": "http://www.w3.org/2000/svg"}


def chart(*lines, limits=()):
    return Chart("a title", "pairs", "share", lines, 0.9, limits)


def parsed(what):
    return ElementTree.fromstring(svg(what).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def points(root):
    lines = root.findall("s:polyline", NAMESPACE)
    return [[tuple(map(float, p.split(","))) for p in line.get("points").split()] for line in lines]


def test_points_stand_where_the_axes_say():
    root = parsed(chart(Line("one", [2, 8, 32], [1.0, 0.5, 0.0])))
    ((a, b, c),) = points(root)
    assert b[0] == pytest.approx((a[0] + c[0]) / 2)  # 8 is the middle of 2 and 32, on a logarithmic axis
    assert b[1] == pytest.approx((a[1] + c[1]) / 2)
    assert a[1] < c[1]  # more is higher
    labels = {t.text: (float(t.get("x")), float(t.get("y"))) for t in root.findall("s:text", NAMESPACE)}
    assert labels["8"][0] == pytest.approx(b[0], abs=0.1)
    assert labels["0.5"][1] == pytest.approx(b[1] + 4, abs=0.1)


def test_everything_stays_inside():
    lines = [Line(f"line {i}", [2, 500], [-3.0, 7.0], mark=30.0) for i in range(8)]
    root = parsed(chart(*lines, limits=[(2.0, "low"), (900.0, "high")]))
    _, _, width, height = map(float, root.get("viewBox").split())
    assert (width, height) == (WIDTH, HEIGHT + 18 * 8)
    for line in points(root):
        for x, y in line:
            assert 0 <= x <= WIDTH
            assert 0 <= y <= HEIGHT
    assert len(root.findall("s:circle", NAMESPACE)) == 8


def test_no_lines_and_one_point():
    assert not points(parsed(chart()))
    assert len(points(parsed(chart(Line("one", [5], [0.5]))))[0]) == 2  # drawn as a dot
    assert not parsed(chart(Line("one", [5], [0.5], mark=math.nan))).findall("s:circle", NAMESPACE)


def test_names_are_text():
    root = parsed(chart(Line("<script>alert(1)</script>", [2, 3], [0, 1]), limits=[(4.0, "a < b & c")]))
    texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "<script>alert(1)</script>" in texts
    assert "a < b & c" in texts
    assert root.find("s:title", NAMESPACE).text == "a title"
    assert root.get("role") == "img"


def test_neighbours_differ_in_colour_and_dashes():
    looks = [style(number) for number in range(12)]
    assert len(set(looks)) == 12
    for one, other in itertools.pairwise(looks):
        assert one[0] != other[0]
        assert one[1] != other[1]


def test_ticks_are_powers_of_two_inside():
    assert ticks(2, 64) == [2, 4, 8, 16, 32, 64]
    assert ticks(3, 60) == [4, 8, 16, 32]


def test_matplotlib_draws_the_same():
    axes = Figure().add_subplot()
    draw(axes, chart(Line("one", [2, 8, 32], [1.0, 0.5, 0.0], mark=3.0), limits=[(16.0, "limit")]))
    line = axes.get_lines()[0]
    assert line.get_xdata().tolist() == [2, 8, 32]
    assert line.get_ydata().tolist() == [1.0, 0.5, 0.0]
    assert axes.get_legend().get_texts()[0].get_text() == "one"
    assert "limit" in [text.get_text() for text in axes.texts]
