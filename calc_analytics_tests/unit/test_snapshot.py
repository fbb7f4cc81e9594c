"""Snapshots as values."""

import pytest

from calc_analytics.rollup.snapshot import Snapshot


@pytest.mark.parametrize(
    ("text", "xmin", "xmax", "xip"),
    [
        ("10:20:10,14,15", 10, 20, (10, 14, 15)),
        ("7:7:", 7, 7, ()),
        ("5000000000:5000000009:5000000000", 5_000_000_000, 5_000_000_009, (5_000_000_000,)),
    ],
)
def test_the_text_form_is_read_with_64_bits(text: str, xmin: int, xmax: int, xip: tuple[int, ...]):
    snapshot = Snapshot.parse(text)
    assert (snapshot.xmin, snapshot.xmax, snapshot.xip, snapshot.text) == (xmin, xmax, xip, text)
    assert snapshot.bind("s1") == {"s1_xmin": xmin, "s1_xmax": xmax, "s1_xip": list(xip)}
