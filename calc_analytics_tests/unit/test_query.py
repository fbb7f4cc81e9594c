"""What of a declaration is translated for other engines, and what is refused."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import ColumnElement, Integer, String, case, cast, func

from calc_analytics.engines.query import DUCKDB, SPARK, CannotTranslate, reduction
from calc_analytics.rollups import LATENCY, LOG, STATS

c = LOG.table.c


def with_key(expression: ColumnElement[Any]):
    """A rollup with that expression as a key."""
    return replace(LATENCY, key_expressions={**LATENCY.key_expressions, "source": expression})


@pytest.mark.parametrize("dialect", [DUCKDB, SPARK])
@pytest.mark.parametrize("rollup", LOG.rollups, ids=lambda rollup: rollup.name)
def test_each_declared_rollup_is_translated(rollup, dialect: str):
    query = reduction(rollup, LOG, dialect, "archived")
    assert query.endswith(f"from archived as l group by {', '.join(map(str, range(1, len(rollup.keys) + 2)))}")
    assert all(name in query for name in rollup.column_names)


@pytest.mark.parametrize(
    ("expression", "used"),
    [
        (func.floor(func.ln(c.response_time_ms)), "FLOOR(LN(response_time_ms))"),
        (func.round(c.response_time_ms, -1), "ROUND(response_time_ms, -1)"),
        (cast(c.response_time_ms / 1000, Integer), "response_time_ms / CAST(1000 AS DECIMAL)"),
        (c.response_time_ms * 1.5, "1.5"),
        (c.response_time_ms % c.source, "response_time_ms % source"),
        (c.response_time_ms // -7, "response_time_ms / -7"),
        (c.response_time_ms + 2**63, "9223372036854775808"),
        (func.extract("hour", c.created_at), "EXTRACT(HOUR FROM created_at)"),
        (func.date_trunc("hour", c.created_at), "DATE_TRUNC('HOUR', created_at)"),
        (cast(c.created_at, String), "CAST(created_at AS VARCHAR)"),
        (func.date_bin("15 minutes", c.created_at, "2000-01-01"), "DATE_BIN('15 minutes', created_at"),
        (case((c.source, 1)), "source, which is not a boolean"),
        (case((c.cache_hit, 1), else_=c.date_calculated), "date_calculated, which is a date"),
        (func.random(), "RANDOM()"),
    ],
    ids=str,
)
def test_what_engines_may_compute_differently_is_refused_in_one_line(expression, used: str):
    with pytest.raises(CannotTranslate) as refused:
        reduction(with_key(expression), LOG, DUCKDB, "archived")
    message = str(refused.value)
    assert message.startswith("calculation_latency_daily cannot be counted from the archive: source is ")
    assert used in message
    assert "\n" not in message


def test_an_aggregate_that_does_not_add_up_is_refused():
    for aggregate in (func.count(c.source.distinct()), func.avg(c.source), func.max(c.source)):
        rollup = replace(STATS, aggregates={**STATS.aggregates, "source_web": aggregate})
        with pytest.raises(CannotTranslate, match=r"calculation_stats_daily .* source_web is "):
            reduction(rollup, LOG, SPARK, "archived")
