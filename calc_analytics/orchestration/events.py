"""The events of a sensor tick: materializations of days that rows were added to, and an observation of the log.
Evaluations of checks and pictures come from runs only.

Under steady load, with four rollups, today and late rows for the two days before, an hour stores 198 rows of the event
log: 30 x 4 materializations of today, 6 x 2 x 4 of the others, and 30 observations (at most 42). The two hourly runs
store about 55 each: some 310 in all, and less than 400.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date, datetime
from typing import TYPE_CHECKING

from dagster import AssetKey, AssetMaterialization, AssetObservation, PartitionsDefinition

from calc_analytics import logs
from calc_analytics.days import today
from calc_analytics.orchestration.assets import calculation_logs
from calc_analytics.orchestration.cursor import Cursor, UnreportedRows
from calc_analytics.orchestration.metadata import day_metadata, further_figures, log_metadata, previews
from calc_analytics.orchestration.partitions import as_days, keys_of

if TYPE_CHECKING:
    from calc_analytics.rollup.database import Database
    from calc_analytics.rollup.declaration import Rollup
    from calc_analytics.rollup.follow import FollowReport

# Under steady load a day is materialized this often: today, and any other day; with many other days more rarely.
TODAY_SECONDS, OTHER_DAYS_SECONDS, EACH_OTHER_DAY_SECONDS = 120, 600, 300
# Days (of a rollup) built on the command line since the last tick that one tick reports.
BUILT_ELSEWHERE_PER_TICK = 200

Events = list[AssetMaterialization | AssetObservation]


def report_days(
    db: "Database",
    report: "FollowReport",
    differing: dict[str, list[str]],
    cursor: Cursor,
    partitions: PartitionsDefinition,
) -> tuple[Events, Cursor]:
    """The events of this tick: for each day immediately after a quiet time, then every few minutes.

    A day that differs is not materialized: the UI would no longer show that its check failed.
    """
    cursor = _collect(db, report, cursor)
    now, days = time.time(), {*cursor.unreported, *cursor.built_elsewhere}
    keys = keys_of([date.fromisoformat(key) for key in days], partitions)
    due = [key for key in _due(db, cursor, keys, now) if key not in differing]
    events = _materializations(db, cursor, as_days(due))
    if events:
        events.append(AssetObservation(calculation_logs.key, metadata=log_metadata(db, cursor.unobserved_rows)))
    left = set(keys) - set(due)
    longest = OTHER_DAYS_SECONDS + EACH_OTHER_DAY_SECONDS * len(cursor.reported_at)
    return events, replace(
        cursor,
        unreported={key: each for key, each in cursor.unreported.items() if key in left},
        built_elsewhere={key: each for key, each in cursor.built_elsewhere.items() if key in left},
        reported_at={
            **{key: at for key, at in cursor.reported_at.items() if now - at < longest},
            **{key: now for key in due if key in cursor.unreported},
        },
        unobserved_rows=0 if events else cursor.unobserved_rows,
    )


def _collect(db: "Database", report: "FollowReport", cursor: Cursor) -> Cursor:
    """The cursor with the rows that the tick's refreshes added, and the days that were built on the command line."""
    from calc_analytics.rollup.journal import rebuild_seconds
    from calc_analytics.rollup.ledger import days_built_by_others

    unreported = dict(cursor.unreported)
    for day, rows in report.rows_by_day.items():
        before = unreported.get(str(day), UnreportedRows())
        unreported[str(day)] = UnreportedRows(before.rows + rows, before.seconds + report.seconds)
    since = cursor.built_elsewhere_until
    others = days_built_by_others(db, datetime.fromisoformat(since) if since else None, BUILT_ELSEWHERE_PER_TICK)
    built = {key: dict(each) for key, each in cursor.built_elsewhere.items()}
    seconds = rebuild_seconds(db, others)
    for day, name, _ in others:
        built.setdefault(str(day), {})[name] = seconds.get((day, name))
    return replace(
        cursor,
        unreported=unreported,
        built_elsewhere=built,
        unobserved_rows=cursor.unobserved_rows + report.rows,
        built_elsewhere_until=others[-1][2].isoformat() if others else since,
    )


def _due(db: "Database", cursor: Cursor, keys: Sequence[str], now: float) -> list[str]:
    """Of these days, those that were built elsewhere, and those whose rows may be reported again."""
    current = str(today(db.timezone))
    others = sum(key != current for key in cursor.unreported)
    pause = max(OTHER_DAYS_SECONDS, EACH_OTHER_DAY_SECONDS * others)
    return [
        key
        for key in keys
        if key in cursor.built_elsewhere
        or now - cursor.reported_at.get(key, 0.0) >= (TODAY_SECONDS if key == current else pause)
    ]


def _materializations(db: "Database", cursor: Cursor, days: Sequence[date]) -> Events:
    """One per rollup and day that is built in it: of all rollups if rows were added, else of those built elsewhere."""
    from calc_analytics.rollup.ledger import days_by_status

    built = days_by_status(db, ["built"]) if days else {}
    events: Events = []
    for declared in db.log.rollups:
        events += _of_rollup(db, declared, cursor, [day for day in days if declared.name in built.get(day, [])])
    return events


def _of_rollup(db: "Database", declared: "Rollup", cursor: Cursor, days: Sequence[date]) -> Events:
    from calc_analytics.rollup.figures import day_ratios, day_totals

    built = {key for key, seconds in cursor.built_elsewhere.items() if declared.name in seconds}
    days = [day for day in days if str(day) in built or str(day) in cursor.unreported]
    totals = day_totals(db, declared, days) if days else {}
    ratios, tables = day_ratios(db, declared, totals), previews(db, declared, list(totals))
    further = further_figures(db, declared, list(totals), _warn)
    events: Events = []
    for day, measures in totals.items():
        seconds, rows = _work(declared, cursor, str(day))
        figures = {**day_metadata(declared, measures, measures["keys"], ratios[day], seconds, rows), **further[day]}
        metadata = {**figures, **tables[day]}
        events.append(AssetMaterialization(AssetKey(declared.name), partition=str(day), metadata=metadata))
    return events


def _warn(message: str) -> None:
    logs.log(logging.WARNING, "events", failed=message)


def _work(declared: "Rollup", cursor: Cursor, key: str) -> tuple[float | None, int | None]:
    """How long the refreshes or the rebuild took, and the rows that refreshes added; None is not known."""
    if key in cursor.unreported:
        return cursor.unreported[key].seconds, cursor.unreported[key].rows
    return cursor.built_elsewhere[key].get(declared.name), None
