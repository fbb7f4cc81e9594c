"""Retention: deletes raw logs that are counted in built days, and only those; their statistics stay.

A batch is one transaction that holds the state's lock: what it deletes is visible in the stored snapshot, so it is
counted, and what it deleted is noted with the day (`seals.py`) at the same commit.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import partial

from sqlalchemy import text
from sqlalchemy.engine import Engine

from calc_analytics.database.engine import WHOLE_DAYS, persistently, transaction
from calc_analytics.rollup import seals, state
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.reports import PruneReport
from calc_analytics.rollup.snapshot import visible
from calc_analytics.rollup.windows import Window, of_day, windows

# The lock is held for some tens of milliseconds per batch.
BATCH_ROWS = 5_000


def prunable(engine: Engine, rollup: Rollup, before: date) -> dict[date, int]:
    """Built days before that one whose counted logs are there, as far as is known, and how many. Cost: statistics."""
    statement = f"""
    select date, sum(t.{rollup.count}) - coalesce(cast(d.missing ->> :count as bigint), 0) as rows
    from rollup_days d join {rollup.target} t using (date)
    where d.rollup = :rollup and d.status = 'built' and date < :before
    group by date, d.missing
    having sum(t.{rollup.count}) > coalesce(cast(d.missing ->> :count as bigint), 0)
    order by date
    """
    parameters = {"rollup": rollup.name, "before": before, "count": rollup.count}
    with transaction(engine) as connection:
        return {row.date: int(row.rows) for row in connection.execute(text(statement), parameters)}


def not_built(engine: Engine, rollup: Rollup, before: date) -> list[date]:
    """Days before that one that are on record, but not built: their logs stay until they are."""
    statement = (
        "select date from rollup_days where rollup = :rollup and status <> 'built' and date < :before order by 1"
    )
    with transaction(engine) as connection:
        return list(connection.execute(text(statement), {"rollup": rollup.name, "before": before}).scalars())


def prune(
    engine: Engine,
    rollup: Rollup,
    timezone: str,
    before: date,
    *,
    batch_rows: int = BATCH_ROWS,
    progress: Callable[[int], object] = lambda rows: None,
) -> PruneReport:
    """Deletes the counted logs of built days before that one, in batches; may be stopped and repeated.

    `progress` gets the rows of each batch. Rows that are not counted yet, and days that are not built, keep their logs.
    Transient trouble is tried again; a batch that was deleted when its connection broke is not in the report.
    """
    started, deleted = time.perf_counter(), dict[date, int]()

    def prune_day(span: Window) -> None:
        for ids in _batches(engine, rollup, timezone, span, batch_rows):
            rows = _delete_counted(engine, rollup, timezone, span, ids)
            deleted[span.day] = deleted.get(span.day, 0) + rows
            progress(rows)

    days = persistently(partial(prunable, engine, rollup, before))
    for span in persistently(partial(_windows, engine, timezone, list(days))):
        persistently(partial(prune_day, span))
    left = persistently(partial(not_built, engine, rollup, before))
    rows_by_day = {day: rows for day, rows in deleted.items() if rows}
    return PruneReport(rows_by_day, left, time.perf_counter() - started)


def _windows(engine: Engine, timezone: str, days: list[date]) -> list[Window]:
    with transaction(engine) as connection:
        return windows(connection, days, timezone)


def _batches(engine: Engine, rollup: Rollup, timezone: str, span: Window, size: int) -> Iterator[Sequence[int]]:
    """The ids of a day's rows, from one scan of it."""
    with transaction(engine) as connection:
        state.read(connection, rollup, timezone)
        connection.execute(WHOLE_DAYS)
        statement = text(f"select id from {rollup.source} where {of_day(rollup.event_time, span)}")
        parameters = {**span.parameters(), "tz": timezone}
        found = connection.execution_options(stream_results=True).execute(statement, parameters)
        yield from found.scalars().partitions(size)


def _delete_counted(engine: Engine, rollup: Rollup, timezone: str, span: Window, ids: Sequence[int]) -> int:
    """Of these rows of a day, deletes those that are counted, and notes them; returns how many."""
    statement = text(_delete_sql(rollup, of_day(rollup.event_time, span)))
    with transaction(engine) as connection:
        seals.keep_out_rebuilds(connection, rollup)
        counted = state.lock(connection, rollup, timezone).snapshot
        parameters = {"rollup": rollup.name, "tz": timezone, "ids": ids, **span.parameters(), **counted.bind("s1")}
        return int(connection.execute(statement, parameters).scalar_one())


def _delete_sql(rollup: Rollup, is_of_day: str) -> str:
    """Each measure of the deleted rows is added to what the day's record says is missing."""
    missing = rollup.each_measure(
        "'{name}', coalesce(cast(d.missing ->> '{name}' as bigint), 0) + deleted.{name}",
    )
    return f"""
    with gone as (
        delete from {rollup.source}
        where id = any(:ids) and {is_of_day} and {visible("s1")}
          and exists (select from rollup_days where rollup = :rollup and date = :day and status = 'built')
        returning *
    ),
    deleted as (select {rollup.aggregates} from gone),
    noted as (
        update rollup_days d set missing = jsonb_build_object({missing}),
            sealed_at = coalesce(sealed_at, clock_timestamp()), sealed_by = coalesce(sealed_by, 'prune')
        from deleted where d.rollup = :rollup and d.date = :day and deleted.{rollup.count} > 0
    )
    select {rollup.count} from deleted
    """
