"""Every rollup compared with the log, in SQL written by hand: nothing here asks the project how it aggregates."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.engine import Engine

from calc_analytics_tests.logs import FORMS

DAY = "cast(created_at at time zone 'UTC' as date)"
# Seven leading binary digits of the response time are kept.
DROPPED_BITS = "length(ltrim(cast(cast(cast(response_time_ms as int) as bit(32)) as text), '0')) - 7"
KEYS = {
    "publisher_id": "publisher_id",
    "locality_id": "locality_id",
    "hour": "date_trunc('hour', created_at, 'UTC')",
    "source": "source",
    "response_time_ms": f"""case
        when response_time_ms is null or response_time_ms < 0 then -1
        when response_time_ms < 128 then response_time_ms
        else response_time_ms - response_time_ms % (1 << ({DROPPED_BITS})) end""",
}
MEASURES = {
    "total_calculations": "count(*)",
    "calculations": "count(*)",
    "cache_hits": "count(*) filter (where cache_hit)",
    "total_response_time_ms": "coalesce(sum(response_time_ms), 0)",
    "source_web": "count(*) filter (where source = 1)",
    "source_api": "count(*) filter (where source = 2)",
    "source_external": "count(*) filter (where source = 3)",
}


@dataclass(frozen=True)
class Comparison:
    """A rollup against the log: keys that differ, and the rows of the log that were compared."""

    differing: int
    rows: int


def compare(engine: Engine, *, live: bool, built_only: bool = True) -> Mapping[str, Comparison]:
    """Each rollup's live view (or table) and all logs, in one statement, so at one instant; by the rollup's name."""
    statement = " union all ".join(_compare_one(name, live, built_only) for name in FORMS)
    with engine.begin() as connection:
        return {row.rollup: Comparison(row.differing, int(row.rows)) for row in connection.execute(text(statement))}


def differing(engine: Engine, *, live: bool, built_only: bool = True) -> dict[str, int]:
    """The keys that differ, of each rollup that has any: empty when everything is right."""
    found = compare(engine, live=live, built_only=built_only)
    assert set(found) == set(FORMS)
    return {name: each.differing for name, each in found.items() if each.differing}


def _compare_one(name: str, live: bool, built_only: bool) -> str:
    keys, measures = FORMS[name]
    grouped = ", ".join(str(n + 1) for n in range(len(keys) + 1))
    selected = ", ".join([*(f"{KEYS[key]} as {key}" for key in keys), f"{DAY} as date"])
    summed = ", ".join(f"{MEASURES[measure]} as {measure}" for measure in measures)
    differs = " or ".join(f"raw.{measure} is distinct from counted.{measure}" for measure in measures)
    built = f"where date in (select date from rollup_days where rollup = '{name}' and status = 'built')"
    return f"""
        select '{name}' as rollup, count(*) filter (where {differs}) as differing,
               coalesce(sum(raw.{measures[0]}), 0) as rows
        from (select {selected}, {summed} from calculation_logs group by {grouped}) raw
        full join {name}{"_live" if live else ""} counted using ({", ".join(keys)}, date)
        {built if built_only else ""}
    """
