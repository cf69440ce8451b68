"""Colour scales: zero in the middle, the limit at the end, marks for what is no number, and the PNG writer."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.errors import InvalidParamError
from atlas_kit.widgets import colour

LIMITS = st.floats(1e-20, 1e20)
ALL = [(transform, colours) for transform in colour.TRANSFORMS for colours in colour.COLOURS]


@pytest.mark.parametrize(("transform", "colours"), ALL)
@given(limit=LIMITS)
def test_zero_and_the_limit_have_shades_of_their_own(transform, colours, limit):
    values = np.array([[-limit * 7, -limit, 0, limit, limit * 7]])
    found = colour.indices(values, limit, transform, colours)[0].tolist()
    last = colour.SHADES - 1
    assert found == ([0, 0, last // 2, last, last] if colours == "diverging" else [0, 0, 0, last, last])


@pytest.mark.parametrize(("transform", "colours"), ALL)
@given(values=st.lists(st.floats(-2, 2), min_size=2), limit=st.floats(0.1, 2))
def test_larger_numbers_have_later_shades(transform, colours, values, limit):
    found = colour.indices(np.sort(values)[None], limit, transform, colours)[0].astype(int)
    assert (np.diff(found) >= 0).all()


@given(st.floats(-1, 1), LIMITS, st.sampled_from(colour.TRANSFORMS))
def test_unscaling_undoes_scaling(ratio, limit, transform):
    value = colour.unscaled(ratio, limit, transform)
    assert colour.scaled(value, limit, transform) == pytest.approx(ratio, abs=1e-9)


@pytest.mark.parametrize("transform", colour.TRANSFORMS)
def test_what_is_far_beyond_a_tiny_limit_has_the_strongest_colour(transform):
    assert colour.scaled([1e300, -1.0, 0.0], 5e-324, transform).tolist() == [1, -1, 0]


def test_symlog_shows_what_linear_hides():
    values = np.array([[0.0, 0.002]])
    assert len(set(colour.indices(values, 1, "linear")[0])) == 1
    assert len(set(colour.indices(values, 1, "symlog")[0])) == 2


def test_what_is_no_number_has_marks_that_no_number_has():
    values = np.full((2, 6), [np.nan, np.nan, np.inf, np.inf, -np.inf, -np.inf])
    found = colour.indices(values, 1.0)
    assert sorted(set(found.ravel().tolist())) == [249, 250, 251, 252, 253, 254]
    assert (found[0] != found[1]).all()  # a check, so that it is seen without colours
    table = colour.palette()
    shades = {tuple(shade) for shade in table[: colour.SHADES].tolist()}
    assert not shades & {tuple(mark) for mark in table[[249, 250, 252, 254]].tolist()}


def luminance(table):
    share = table / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("dark", [False, True])
def test_the_diverging_table_is_readable_without_hue(dark):
    light = luminance(colour.palette(dark=dark)[: colour.SHADES])
    light = light if not dark else -light  # on a dark page the middle is dark
    middle = colour.SHADES // 2
    assert light.argmax() == middle
    assert (np.diff(light[: middle + 1]) >= -1e-3).all()
    assert (np.diff(light[middle:]) <= 1e-3).all()


@pytest.mark.parametrize("dark", [False, True])
def test_signs_differ_for_people_without_red_or_green(dark):
    """What is left of a colour for protanopes and deuteranopes (Vienot 1999), at both ends of the table."""
    shades = (colour.palette(dark=dark)[: colour.SHADES] / 255) ** 2.2
    red, green, blue = shades.T
    for seen in (0.11 * red + 0.89 * green, 0.29 * red + 0.71 * green):
        yellow_to_blue = blue - seen
        low, high = yellow_to_blue[: colour.SHADES // 3], yellow_to_blue[-colour.SHADES // 3 :]
        assert low.mean() - high.mean() > 0.15


def test_the_sequential_table_gets_lighter():
    assert (np.diff(luminance(colour.palette("sequential")[: colour.SHADES])) > -1e-4).all()


@pytest.mark.parametrize(("transform", "colours"), ALL)
def test_the_bars_numbers_go_from_end_to_end(transform, colours):
    ticks = colour.ticks(2.0, transform, colours)
    assert ticks == sorted(ticks)
    assert ticks[-1] == 2
    assert ticks[0] == (0 if colours == "sequential" else -2)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(InvalidParamError, match=r"'jet'.*diverging, sequential"):
        colour.check("jet", "linear")
    with pytest.raises(InvalidParamError, match="symlog"):
        colour.check("diverging", "log")


def test_a_png_is_what_other_programs_read():
    from matplotlib.image import imread

    picture = np.arange(12, dtype=np.uint8).reshape(3, 4)
    table = colour.palette()
    read = imread(io.BytesIO(colour.png(picture, table)), format="png")
    np.testing.assert_array_equal(np.rint(read[..., :3] * 255), table[picture])


@pytest.mark.parametrize(("transform", "colours"), ALL)
def test_matplotlib_gets_the_same_shades(transform, colours):
    values = np.linspace(-3, 3, 50)
    limit = 3.0
    mapped = colour.colormap(colours)(colour.norm(limit, transform, colours)(values))[:, :3]
    ours = colour.palette(colours)[colour.indices(values[None], limit, transform, colours)[0]] / 255
    assert np.abs(mapped - ours).max() < 0.03  # at most a shade apart
