"""Seals: what is known of days whose logs were deleted after they were counted.

A sealed day's record says what its statistics hold and its logs no longer do, per measure (`missing`): `prune` adds
what it deletes, and a rebuild notes what it finds deleted by others. So for every sealed day

    stats(day) == missing + aggregate(logs of that day that are visible in the stored snapshot)

summed over keys, late rows still add to it, and only `allow_shrink` recounts it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

from sqlalchemy import text
from sqlalchemy.engine import Connection, RowMapping

from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.reports import Shrunk
from calc_analytics.rollup.windows import Window, of_day, windows

ADVISORY_LOCK = 724_410_050


@dataclass(frozen=True)
class Judgement:
    """Of the days of a rebuild, those that would shrink, and those that waited and need no recount after all."""

    shrunk: list[Shrunk] = field(default_factory=list)
    accounted: list[date] = field(default_factory=list)


def keep_out_prune(connection: Connection, rollup: Rollup) -> None:
    """Until the transaction ends no `prune` of the rollup deletes: a rebuild counts and judges the same rows."""
    _lock(connection, rollup, "pg_advisory_xact_lock_shared")


def keep_out_rebuilds(connection: Connection, rollup: Rollup) -> None:
    """Until the transaction ends no rebuild of the rollup counts. Taken before the state's lock, by both."""
    _lock(connection, rollup, "pg_advisory_xact_lock")


def _lock(connection: Connection, rollup: Rollup, function: str) -> None:
    statement = text(f"select {function}({ADVISORY_LOCK}, hashtext(:rollup))")
    connection.execute(statement, {"rollup": rollup.name})


def mark(connection: Connection, rollup: Rollup, days: Sequence[date], status: str) -> None:
    """Gives these days that status; days that are not on record stay so."""
    statement = text("update rollup_days set status = :status where rollup = :rollup and date = any(:days)")
    connection.execute(statement, {"rollup": rollup.name, "days": list(days), "status": status})


def judge(connection: Connection, rollup: Rollup, timezone: str, spans: list[Window]) -> Judgement:
    """Compares the recounted days (the temporary table `rebuilt`) with the stored ones, and notes what it finds."""
    judgement, by_day = Judgement(), {span.day: span for span in spans}
    rows = connection.execute(text(_compare_sql(rollup)), {"rollup": rollup.name, "days": list(by_day)})
    for row in rows.mappings().all():
        if row["status"] in (None, "pending") and _has_old_rows(connection, rollup, timezone, by_day[row["date"]]):
            continue
        found = {name: int(row[f"counted_{name}"] - row[f"raw_{name}"]) for name in rollup.measure_names}
        if row["timezone"] not in (None, timezone):
            raw = _rows_of_day(connection, rollup, row["date"], row["timezone"])
            found = {rollup.count: int(row[f"counted_{rollup.count}"]) - raw}
        if found[rollup.count] > 0 or (row["missing"] and row["status"] != "built"):
            _judge_day(connection, rollup, row, found, judgement)
    return judgement


def _judge_day(
    connection: Connection, rollup: Rollup, row: RowMapping, found: dict[str, int], judgement: Judgement
) -> None:
    accounted, is_built = found == row["missing"], row["status"] == "built"
    if accounted and not is_built:
        mark(connection, rollup, [row["date"]], "built")
        judgement.accounted.append(row["date"])
        return
    if is_built and not accounted and _is_deletion(rollup, found):
        parameters = {"rollup": rollup.name, "day": row["date"], "missing": json.dumps(found)}
        connection.execute(_FOUND, parameters)
    if not is_built:
        mark(connection, rollup, [row["date"]], "kept")
    counted = int(row[f"counted_{rollup.count}"])
    pruned = (row["missing"] or {}).get(rollup.count, 0)
    judgement.shrunk.append(Shrunk(row["date"], counted - found[rollup.count], counted, pruned))


def _is_deletion(rollup: Rollup, found: dict[str, int]) -> bool:
    """Whether deleted logs explain the difference: then no count is higher in the logs than in the statistics."""
    counts = [measure.name for measure in rollup.measures if measure.aggregate.startswith("count(")]
    return all(found.get(name, -1) >= 0 for name in counts)


def _compare_sql(rollup: Rollup) -> str:
    """The days that have statistics and either fewer raw rows or a seal."""
    sums = rollup.each_measure("sum({name}) as {name}")
    raw = rollup.each_measure("coalesce(raw.{name}, 0) as raw_{name}")
    counted = rollup.each_measure("counted.{name} as counted_{name}")
    return f"""
    with raw as (select date, {sums} from rebuilt group by date),
    counted as (select date, {sums} from {rollup.target} where date = any(:days) group by date)
    select counted.date, d.status, d.timezone, d.missing, {raw}, {counted}
    from counted
    left join raw using (date)
    left join rollup_days d on d.rollup = :rollup and d.date = counted.date
    where coalesce(raw.{rollup.count}, 0) < counted.{rollup.count} or d.missing is not null
    order by counted.date
    """


def _has_old_rows(connection: Connection, rollup: Rollup, timezone: str, span: Window) -> bool:
    """Whether the day has logs from before this project: then a predecessor whose statistics are higher counted them
    more than once. If all its rows are newer, the logs of those statistics are gone."""
    statement = (
        f"select exists (select from {rollup.source} where {of_day(rollup.event_time, span)} and xact_id is null)"
    )
    return bool(connection.execute(text(statement), {**span.parameters(), "tz": timezone}).scalar())


def _rows_of_day(connection: Connection, rollup: Rollup, day: date, timezone: str) -> int:
    """Log rows of the day in the zone its statistics were built in: what they are to be compared with."""
    (span,) = windows(connection, [day], timezone)
    statement = f"select count(*) from {rollup.source} where {of_day(rollup.event_time, span)}"
    return int(connection.execute(text(statement), {**span.parameters(), "tz": timezone}).scalar_one())


_FOUND = text(
    """
    update rollup_days set missing = cast(:missing as jsonb), sealed_at = coalesce(sealed_at, clock_timestamp()),
        sealed_by = coalesce(sealed_by, 'found')
    where rollup = :rollup and date = :day
    """
)
