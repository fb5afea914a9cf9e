"""The scale of a map: where its colours end, and what is said of it."""

import numpy as np
import pytest

from transpector.components.parts.scale import Scale


def test_a_first_token_that_is_a_hundred_times_as_large_does_not_stretch_the_colours():
    values = np.linspace(10, 100, 200, dtype=np.float32).reshape(5, 40)
    values[:, 0] = 20_000
    scale = Scale.of(values, "log")
    assert (scale.low, scale.high) == (pytest.approx(values[0, 1]), 100)
    assert scale.n_beyond == 5 and scale.n == 200
    assert "5 of 200 cells lie beyond" in scale.says
    assert scale.shade(values)[0, 0] > scale.ends[1] == pytest.approx(2)


def test_a_signed_scale_is_made_for_all_but_the_first_position_where_that_is_left_out():
    values = np.array([[-900.0, 1.0, -2.0], [-900.0, 0.0, 0.5]], np.float32)
    scale = Scale.of(values, "signed", within=values[:, 1:])
    assert scale.high == 2 and scale.says == "colours to ±2.00, 2 of 6 cells lie beyond"
    assert Scale.of(values[:, :1], "signed", within=values[:, 1:1]).high == 900
    one = np.linspace(-1, 1, 100, dtype=np.float32).reshape(10, 10)
    one[3, 4] = 461
    assert Scale.of(one, "signed").high == 1


def test_zero_has_the_page_s_colour_and_what_is_nothing_stays_so():
    scale = Scale.of(np.array([[0.0, 1.0, 10.0, np.nan]], np.float32), "log")
    shade = scale.shade(np.array([[0.0, 1.0, np.nan]], np.float32))
    assert shade[0, 0] == shade[0, 1] == scale.ends[0] and np.isnan(shade[0, 2])
    assert scale.palette(False)[0] == "#ffffff"


@pytest.mark.parametrize("kind", ["log", "signed", "cosine"])
@pytest.mark.parametrize("values", [[[0.0, 0.0]], [[3.0]], [[np.nan]], [[-1.0, 1.0]]], ids=str)
def test_whatever_the_numbers_the_ends_lie_apart(kind, values):
    scale = Scale.of(np.array(values, np.float32), kind)
    low, high = scale.ends
    assert low < high and all(low - 1e-9 <= at <= high + 1e-9 for at in scale.ticks)


def test_a_signed_scale_is_about_zero():
    scale = Scale.of(np.array([[-0.5, 0.1, 0.2]], np.float32), "signed")
    assert scale.low == -scale.high == -0.5 and scale.says == ""
    assert scale.palette(False)[len(scale.palette(False)) // 2] == "#ffffff"
    assert [*scale.ticks.values()] == ["−0.4", "−0.2", "0", "+0.2", "+0.4"]


def test_ticks_of_a_log_scale_are_round_numbers():
    assert [*Scale("log", 48, 1190).ticks.values()] == ["50", "100", "200", "300", "500", "1,000"]
    assert [*Scale("log", 3e-7, 5e-3).ticks.values()] == ["1e−6", "1e−5", "1e−4", "0.001"]
