"""The statements that count days of the log anew: whole days as of a snapshot, and what came since."""

from collections.abc import Container, Sequence
from datetime import date
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.engine import NEW_ROWS, WHOLE_DAYS
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.judge import recount_table
from calc_analytics.rollup.refresh_sql import counts_between
from calc_analytics.rollup.snapshot import Snapshot, between, visible
from calc_analytics.rollup.windows import Window, of_day


def count_days(
    connection: Connection,
    db: Database,
    rollups: Sequence[Rollup],
    spans: Sequence[Window],
    at: Snapshot,
    empty: Container[date] = (),
) -> None:
    """Aggregates the days' rows that are visible in the snapshot into temporary tables, one for each rollup.

    The days in `empty` are known to have none, and are not looked for.
    """
    parameters: dict[str, Any] = {"tz": db.timezone, **at.bind("sa")}
    for n, span in enumerate(spans):
        parameters.update(span.parameters(f"_{n}"))
    connection.execute(WHOLE_DAYS)
    for rollup in rollups:
        statement = count_sql(db, rollup, spans, empty)
        create = f"create temporary table {recount_table(rollup)} on commit drop as {statement}"
        connection.execute(text(create), parameters)
    connection.execute(NEW_ROWS)


def count_sql(db: Database, rollup: Rollup, spans: Sequence[Window], empty: Container[date] = ()) -> str:
    """The days' measures, a branch per day, which may run on several processors."""
    conditions = ["false" if span.day in empty else "true" for span in spans]
    return " union all ".join(day_sql(db, rollup, n, span, conditions[n]) for n, span in enumerate(spans))


def day_sql(db: Database, rollup: Rollup, n: int, span: Window, condition: str = "true") -> str:
    """The measures of the n-th day's rows that are visible in the snapshot `sa`, under a further condition."""
    return f"""
    select {rollup.key_selects}, cast(:day_{n} as date) as date, {rollup.measure_selects}
    from {db.log.name}
    where {of_day(db.log.event_time, span, f"_{n}")} and {visible("sa")} and {condition}
    group by {rollup.group_by}
    """


def add_since(
    connection: Connection,
    db: Database,
    rollup: Rollup,
    days: Sequence[date],
    then: Snapshot,
    now: Snapshot,
    table: str | None = None,
) -> int:
    """Adds the days' rows that became visible between the two snapshots to `recount_table`, or to the other `table`.

    Returns how many rows of the rollup were added.
    """
    statement = f"""
    insert into {table or recount_table(rollup)} ({rollup.columns})
    select {rollup.columns} from ({counts_between(db, rollup)}) since where date = any(:days)
    """
    return connection.execute(text(statement), {"days": list(days), **between(then, now)}).rowcount
