import pytest

from polytask.report import words


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0312, "+3.1 %"), (-0.0004, "0.0 %"), (0.0, "0.0 %"), (-0.5, "-50.0 %"), (12.0, "+1200 %"), (None, "–")],
)
def test_percent_signed(share, text):
    assert words.percent(share, signed=True) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.52071, "0.5207"), (8.7211, "8.721"), (1234.56, "1235"), (0, "0.000"), (1e-9, "1.000e-09"), (None, "–")],
)
def test_number_has_four_significant_digits(value, text):
    assert words.number(value) == text


@pytest.mark.parametrize(
    ("mean", "sd", "text"),
    [
        (8.7211, 0.2512, "8.72 ± 0.25"),
        (0.4552, 0.00998, "0.455 ± 0.010"),
        (1234.5, 31.0, "1234 ± 31"),
        (2.0, None, "2.000"),
    ],
)
def test_spread_has_two_significant_digits(mean, sd, text):
    assert words.mean_sd(mean, sd) == text


def test_lists_of_names_are_cut_with_how_many_are_left():
    assert words.listed(["a"]) == "a"
    assert words.listed(["a", "b", "c"]) == "a, b and c"
    assert words.listed(list("abcdefgh"), 3) == "a, b, c and 5 more"


def test_clip_never_returns_more_than_asked():
    assert words.clip("abcdef", 4) == "abc…"
    assert words.clip("abcd", 4) == "abcd"
