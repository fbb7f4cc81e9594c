"""What is counted: the log and its rollups. To add a statistic, declare its table in `database/tables.py` and its
rollup here, and add a migration that creates the table.

A rollup has a target table, keys besides `date`, and measures; keys and measures are SQLAlchemy Core expressions over
the log's columns. The first measure counts log rows, and every measure must be additive. Everything else (refresh,
rebuild, verify, live view, prune, assets, checks, metrics, `--rollup`) follows from the declaration.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

from sqlalchemy import Table, func, or_

from calc_analytics.config import InvalidSetting
from calc_analytics.database.tables import (
    calculation_latency_daily,
    calculation_locality_stats_daily,
    calculation_logs,
    calculation_stats_daily,
    calculation_stats_hourly,
)
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Check, Log, Ratio, Rollup, Suspect, UnknownRollup
from calc_analytics.rollup.expressions import rounded_down, utc_hour

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from calc_analytics.config import Settings

logs = calculation_logs.c
KNOWN_SOURCES = (1, 2, 3)
NO_RESPONSE_TIME = -1

COUNTS = {
    "total_calculations": func.count(),
    "cache_hits": func.count().filter(logs.cache_hit),
    "total_response_time_ms": func.coalesce(func.sum(logs.response_time_ms), 0),
}
SOURCES = {
    "source_web": func.count().filter(logs.source == 1),
    "source_api": func.count().filter(logs.source == 2),
    "source_external": func.count().filter(logs.source == 3),
}
# The average is over the rows that have a response time, which only the histogram counts.
MEASURED = func.sum(calculation_latency_daily.c.calculations).filter(
    calculation_latency_daily.c.response_time_ms != NO_RESPONSE_TIME
)
RATIOS = (
    Ratio("cache_hit_ratio", "cache_hits", per="total_calculations"),
    Ratio("average_response_time_ms", "total_response_time_ms", per=MEASURED),
)


def _cache_hits_within_total(target: Table) -> Check:
    hits, total = target.c.cache_hits, target.c.total_calculations
    return Check(
        name="cache_hits_within_total",
        violation=or_(hits > total, hits < 0),
        description="No row has more cache hits than calculations.",
    )


STATS = Rollup(
    target=calculation_stats_daily,
    key_expressions={"publisher_id": logs.publisher_id},
    aggregates={**COUNTS, **SOURCES},
    description=str(calculation_stats_daily.comment),
    ratios=RATIOS,
    suspects=(Suspect("negative_response_times", logs.response_time_ms < 0),),
    match_check="stats_match_logs",
    usual_check="usual_total",
    checks=(
        Check(
            name="source_breakdown_complete",
            violation=calculation_stats_daily.c.total_calculations
            != calculation_stats_daily.c.source_web
            + calculation_stats_daily.c.source_api
            + calculation_stats_daily.c.source_external,
            description="Web, API and external calculations add up to the total; a warning lists unknown sources.",
            is_warning=True,
            explained_by=logs.source.not_in(KNOWN_SOURCES),
            explained_in=logs.source,
            amount=calculation_stats_daily.c.total_calculations
            - calculation_stats_daily.c.source_web
            - calculation_stats_daily.c.source_api
            - calculation_stats_daily.c.source_external,
        ),
        _cache_hits_within_total(calculation_stats_daily),
    ),
)
LOCALITIES = Rollup(
    target=calculation_locality_stats_daily,
    key_expressions={"publisher_id": logs.publisher_id, "locality_id": logs.locality_id},
    aggregates=COUNTS,
    description=str(calculation_locality_stats_daily.comment),
    ratios=RATIOS,
    checks=(_cache_hits_within_total(calculation_locality_stats_daily),),
)
HOURS = Rollup(
    target=calculation_stats_hourly,
    key_expressions={"publisher_id": logs.publisher_id, "hour": utc_hour(logs.created_at)},
    aggregates={**COUNTS, **SOURCES},
    description=str(calculation_stats_hourly.comment),
    ratios=RATIOS,
    checks=(_cache_hits_within_total(calculation_stats_hourly),),
)
LATENCY = Rollup(
    target=calculation_latency_daily,
    key_expressions={
        "publisher_id": logs.publisher_id,
        "source": logs.source,
        "response_time_ms": rounded_down(logs.response_time_ms, NO_RESPONSE_TIME),
    },
    aggregates={"calculations": func.count()},
    description=str(calculation_latency_daily.comment),
)

LOG = Log(table=calculation_logs, event_time="created_at", rollups=(STATS, LOCALITIES, HOURS, LATENCY))


@lru_cache
def chosen_log(names: tuple[str, ...] | None) -> Log:
    """The log with the rollups that the setting ROLLUPS names (None: all); `InvalidSetting` for any other name."""
    try:
        return LOG.only(names)
    except UnknownRollup as error:
        raise InvalidSetting(f"ROLLUPS: '{','.join(names or ())}' is not usable: {error}") from None


def database(engine: "Engine", settings: "Settings") -> Database:
    """The one object that operations take, as the settings have it."""
    log = chosen_log(settings.rollups)
    return Database(engine, log, settings.timezone, settings.logs_kept_days, settings.archive_url)
