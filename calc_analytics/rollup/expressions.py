"""Core expressions for declarations that databases spell differently, or that are long to write out."""

from typing import Any

from sqlalchemy import ColumnElement, DateTime, case, or_
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

# Values with at most this many binary digits are kept as they are.
SIGNIFICANT_BITS = 7
GREATEST_BITS = 31


class utc_hour(FunctionElement[Any]):
    """The start of the UTC hour in which an instant lies, independent of the session's time zone."""

    type = DateTime(timezone=True)
    inherit_cache = True
    name = "utc_hour"


@compiles(utc_hour, "postgresql")
def _utc_hour(element: utc_hour, compiler: Any, **options: Any) -> str:
    (instant,) = element.clauses
    return f"date_bin('1 hour', {compiler.process(instant, **options)}, timestamptz '2000-01-01 00:00:00+00')"


def rounded_down(value: ColumnElement[Any], missing: int) -> ColumnElement[Any]:
    """The value rounded down to 7 significant bits: exact below 128, at most 1.6 % too low above.

    Null and negative values become `missing`. Values beyond 31 bits, which only a bigint holds, keep more bits.
    """
    exact = (value < 2**SIGNIFICANT_BITS, value)
    rounded = [
        (value < 2**bits, value - value % 2 ** (bits - SIGNIFICANT_BITS))
        for bits in range(SIGNIFICANT_BITS + 1, GREATEST_BITS + 1)
    ]
    beyond = value - value % 2 ** (GREATEST_BITS - SIGNIFICANT_BITS)
    return case((or_(value.is_(None), value < 0), missing), exact, *rounded, else_=beyond)
