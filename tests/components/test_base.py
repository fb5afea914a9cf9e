"""How numbers are written."""

from transpector.components.base import figures


def test_numbers_are_written_to_three_digits():
    wanted = {
        5.08e18: "5.1e18",
        2e6: "2e6",
        float("inf"): "∞",
        21391.2: "21,400",
        -1234.0: "−1,230",
        12.345: "12.3",
        0.5: "0.500",
        100.2: "100",
        999.7: "1,000",
        0.00002: "2e−5",
        1.56e-4: "1.6e−4",
        0.0: "0",
    }
    assert {number: figures(number) for number in wanted} == wanted
    assert figures(2000.0, signed=True) == "+2,000" and figures(float("nan")) == "–"
