"""Verify: compares statistics with logs at the stored snapshot, in one statement per day.

One statement sees one state of the database, so the answer is exact while writers run at full speed: zero
difference, or a bug. It takes no lock and changes nothing; `record` notes the answer for those who ask later.
Of a day whose logs were deleted the totals over its keys are compared, with what is known to be missing added.
"""

import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial

from sqlalchemy import text
from sqlalchemy.engine import Engine, RowMapping

from calc_analytics.database.engine import WHOLE_DAYS, persistently, transaction
from calc_analytics.rollup import state
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.reports import DayProof, LastProof, VerifyReport
from calc_analytics.rollup.snapshot import STORED, STORED_VISIBLE
from calc_analytics.rollup.windows import Window, of_day, windows


def verify(
    engine: Engine,
    rollup: Rollup,
    timezone: str,
    days: Sequence[date],
    *,
    progress: Callable[[DayProof], None] = lambda proof: None,
) -> VerifyReport:
    """Compares these days; a day that was never built and has logs is reported as such, not compared.

    Transient trouble is tried again.
    """
    started, proofs = time.perf_counter(), []
    for day in sorted(set(days)):
        proofs.append(persistently(partial(_prove_day, engine, rollup, timezone, day)))
        progress(proofs[-1])
    return VerifyReport([p for p in proofs if p.built or p.log_rows], time.perf_counter() - started)


def record(engine: Engine, rollup: Rollup, report: VerifyReport) -> None:
    """Notes in the days table when each built day was compared and what was found."""
    found = [
        {"rollup": rollup.name, "day": proof.day, "seconds": proof.seconds, "difference": proof.difference}
        for proof in report.days
        if proof.built
    ]
    if found:
        with transaction(engine) as connection:
            connection.execute(_RECORD, found)


def keep_proven(engine: Engine, rollup: Rollup, timezone: str, days: Sequence[date]) -> dict[date, LastProof]:
    """The last proof of each of these days that is built, renewed first where it is due.

    A proof costs as much as its day has rows, so it is due after a hundred times as long as the last one took, and
    after a minute at least: proving takes no more than a hundredth of the time.
    """
    with transaction(engine) as connection:
        due = list(connection.execute(_DUE, {"rollup": rollup.name, "days": list(days)}).scalars())
    record(engine, rollup, verify(engine, rollup, timezone, due))
    with transaction(engine) as connection:
        rows = connection.execute(_LAST, {"rollup": rollup.name, "days": list(days)})
        return {row.date: LastProof(row.verified_at, row.verified_seconds, row.difference) for row in rows}


def built_days(engine: Engine, rollup: Rollup) -> list[date]:
    """The days the guarantee speaks of, oldest first."""
    return _days(engine, rollup, "status = 'built'")


def overflowed_days(engine: Engine, rollup: Rollup) -> list[date]:
    """Days that are not counted any more because a counter would not fit its column, oldest first."""
    return _days(engine, rollup, "status = 'overflow'")


def waiting_days(engine: Engine, rollup: Rollup) -> list[date]:
    """Days with rows that need a rebuild before they can be exact, oldest first."""
    return _days(engine, rollup, "status in ('pending', 'stale')")


def _days(engine: Engine, rollup: Rollup, which: str) -> list[date]:
    with transaction(engine) as connection:
        statement = f"select date from rollup_days where rollup = :rollup and {which} order by date"
        return list(connection.execute(text(statement), {"rollup": rollup.name}).scalars())


def _prove_day(engine: Engine, rollup: Rollup, timezone: str, day: date) -> DayProof:
    started = time.perf_counter()
    with transaction(engine) as connection:
        state.read(connection, rollup, timezone)
        (span,) = windows(connection, [day], timezone)
        parameters = {"rollup": rollup.name, "tz": timezone, **span.parameters()}
        connection.execute(WHOLE_DAYS)
        row = connection.execute(text(verify_sql(rollup, span)), parameters).mappings().one()
    missing = row["missing"]
    return DayProof(
        day=day,
        log_rows=int(row["log_rows"]),
        counted_rows=int(row["counted_rows"]),
        differences={name: _difference(row, name, missing) for name in rollup.measure_names},
        differing_keys=int(row["keys_with_more_logs" if missing else "differing_keys"]),
        status=row["status"],
        seconds=time.perf_counter() - started,
        pruned_rows=(missing or {}).get(rollup.count, 0),
        suspects={s.name: int(row[s.name]) for s in rollup.suspects if row[s.name]},
    )


def _difference(row: RowMapping, measure: str, missing: dict[str, int] | None) -> int:
    """By how much a measure differs: summed over keys or, for a sealed day, between the day's totals."""
    if missing is None:
        return int(row[measure])
    return abs(int(row[f"stats_{measure}"] - row[f"logs_{measure}"]) - missing.get(measure, 0))


def verify_sql(rollup: Rollup, span: Window) -> str:
    """The comparison of one day. The state is read inside the statement: it belongs to the same instant."""
    differs = rollup.each_measure("l.{name} is distinct from s.{name}", " or ")
    suspects = "".join(f", coalesce(sum(l.{s.name}), 0) as {s.name}" for s in rollup.suspects)
    return f"""
    with {STORED.format(rollup=rollup.name)},
    -- The day's rows that are visible in the stored snapshot.
    from_logs as (
        select {rollup.key_columns}, {rollup.aggregates}{rollup.suspicions}
        from {rollup.source}
        where {of_day(rollup.event_time, span)} and {STORED_VISIBLE}
        group by {rollup.key_columns}
    ),
    from_stats as (select * from {rollup.target} where date = :day),
    known as (select status, missing from rollup_days where rollup = :rollup and date = :day)
    select (select status from known) as status, (select missing from known) as missing,
           coalesce(sum(l.{rollup.count}), 0) as log_rows, coalesce(sum(s.{rollup.count}), 0) as counted_rows,
           count(*) filter (where {differs}) as differing_keys,
           count(*) filter (where l.{rollup.count} > coalesce(s.{rollup.count}, 0)) as keys_with_more_logs,
           {rollup.each_measure("coalesce(sum(l.{name}), 0) as logs_{name}")},
           {rollup.each_measure("coalesce(sum(s.{name}), 0) as stats_{name}")},
           {rollup.each_measure("coalesce(sum(abs(coalesce(l.{name}, 0) - coalesce(s.{name}, 0))), 0) as {name}")}
           {suspects}
    from from_logs l full join from_stats s using ({rollup.key_columns})
    """


_RECORD = text(
    """
    update rollup_days set verified_at = clock_timestamp(), verified_seconds = :seconds, difference = :difference
    where rollup = :rollup and date = :day
    """
)
_BUILT = "rollup = :rollup and date = any(:days) and status = 'built'"
_DUE = text(
    f"""
    select date from rollup_days
    where {_BUILT} and coalesce(
        verified_at + greatest(interval '1 minute', verified_seconds * 100 * interval '1 second') <= clock_timestamp(),
        true)
    """
)
_LAST = text(f"select date, verified_at, verified_seconds, difference from rollup_days where {_BUILT}")
