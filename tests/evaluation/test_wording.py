"""Numbers in words."""

import pytest

from medtl.evaluation import wording


@pytest.mark.parametrize(
    "got, expected",
    [
        (wording.number(-0.0311), "−0.031"),
        (wording.number(-0.0001), "0.000"),
        (wording.number(None), "undefined"),
        (wording.number(float("-inf")), "−∞"),
        (wording.signed(0.05), "+0.050"),
        (wording.signed(0.0001), "0.000"),
        (wording.signed(-0.05), "−0.050"),
        (wording.interval(-0.1, 0.2, sign=True), "−0.100 to +0.200"),
        (wording.interval(0.1, None), ""),
        (wording.p_value(0.0), "<0.001"),
        (wording.p_value(0.0499), "0.050"),
        (wording.p_value(1.0), ">0.999"),
        (wording.p_value(float("nan")), "–"),
        (wording.count(1204.0), "1,204"),
        (wording.count(12.5), "12.5"),
        (wording.percent(0.95), "95 %"),
        (wording.percent(0.999), "99.9 %"),
        (wording.percent(0.9995), "99.95 %"),
        (wording.signed_alike([0.0013, 0.00004, 0.0]), ["+0.00130", "+0.00004", "0"]),
        (wording.p_relation(0.0004), "< 0.001"),
        (wording.p_relation(0.0499), "= 0.050"),
        (wording.metric("f1_macro"), "F1, macro"),
        (wording.metric_in_a_sentence("f1_macro"), "macro F1"),
        (wording.duration(59.6), "1 min 00 s"),
        (wording.duration(7500), "2 h 05 min"),
        (wording.listed(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_numbers_in_words(got, expected):
    assert got == expected
