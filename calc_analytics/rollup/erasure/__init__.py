"""Erasure: removes the rows of some keys (a publisher) from the log and from the statistics; the opposite of prune.

`erase.py` goes through the days, `take_out.py` changes the books of one, `quiet.py` refuses while the keys are written,
`holdings.py` counts what is held of them.
"""

from calc_analytics.rollup.erasure.erase import erase, would_be_left
from calc_analytics.rollup.erasure.holdings import CannotErase, Holdings, NothingToErase, holdings
from calc_analytics.rollup.erasure.keys import Keys, day_name, describe_keys
from calc_analytics.rollup.erasure.quiet import StillWriting
from calc_analytics.rollup.erasure.report import EraseReport, LeftDay

__all__ = [
    "CannotErase",
    "EraseReport",
    "Holdings",
    "Keys",
    "LeftDay",
    "NothingToErase",
    "StillWriting",
    "day_name",
    "describe_keys",
    "erase",
    "holdings",
    "would_be_left",
]
