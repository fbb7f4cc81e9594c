"""Whether a day's counts are usual: compared with the same weekday of the eight weeks before. Nothing is changed.

Robust and modest. The middle half of those weeks (their quartiles) says what is usual, so one holiday among them
changes little. A count is unusual if it is outside by three times the width of that half, measured in proportion:
900 to 1,400 is usual, less than 239 or more than 5,266 is not. Few counts and few weeks are not judged.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.engine import WHOLE_DAYS, transaction
from calc_analytics.days import today
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Rollup

WEEKS, WEEKS_NEEDED = 8, 4
# Below this many, by day and by what is usual, a count is never unusual.
SMALLEST = 100
# How far outside, in widths of the middle half; which is at least so wide (the logarithm of high by low: 35 %).
WIDTHS, LEAST_WIDTH = 3, 0.3


@dataclass(frozen=True)
class Count:
    """What was counted of a key (None: of all keys) on a day, and the quartiles of the same weekdays before."""

    key: int | None
    counted: int
    low: int
    high: int
    is_unusual: bool


@dataclass(frozen=True)
class Judgement:
    """A day: why it is not judged ('' if it is), the count of all keys, and unusual ones of keys, largest first."""

    not_judged: str = ""
    total: Count | None = None
    unusual: list[Count] = field(default_factory=list)

    @property
    def is_usual(self) -> bool:
        """Whether nothing is unusual, or nothing was judged."""
        return not self.unusual and not (self.total and self.total.is_unusual)


def judge_counts(db: Database, rollup: Rollup, days: Sequence[date]) -> dict[date, Judgement]:
    """Judges the count of the rollup's single key on each of these days, and of all keys together.

    A key without a row counts as zero on each day since its first one. Days that are not over, not built, or have less
    than four built weekdays before are not judged, nor are keys that are younger. Cost: the target, read once.
    """
    with transaction(db.engine) as connection:
        connection.execute(WHOLE_DAYS)
        weeks = _built_weeks(connection, rollup, days)
        reasons = {day: _reason(weeks.get(day), day, today(db.timezone)) for day in days}
        judged = [day for day, reason in reasons.items() if not reason]
        counts = _counts(connection, rollup, judged) if judged else {}
    # A day that was to be rebuilt between the two statements has no counts.
    return {
        day: _judgement(counts[day]) if day in counts else Judgement(reasons[day] or "the day is not built")
        for day in days
    }


def _reason(weeks: int | None, day: date, current: date) -> str:
    """Why the day is not judged; '' if it is."""
    if day >= current:
        return "the day is not over"
    if weeks is None:
        return "the day is not built"
    if weeks < WEEKS_NEEDED:
        return f"{weeks} of the {WEEKS} {day:%A}s before are built, and {WEEKS_NEEDED} are needed"
    return ""


def _built_weeks(connection: Connection, rollup: Rollup, days: Sequence[date]) -> dict[date, int]:
    """For each of the days that is built: how many of the weekdays before are, since the first one with a count."""
    rows = connection.execute(text(_WEEKS.format(target=rollup.name)), {"days": list(days), "rollup": rollup.name})
    return {row.day: row.weeks for row in rows}


def _counts(connection: Connection, rollup: Rollup, days: Sequence[date]) -> dict[date, list[Count]]:
    """Of each day the count of all keys, then the unusual ones of keys; those that differ most come first."""
    (key,) = rollup.keys
    statement = _COUNTS.format(target=rollup.name, key=key, count=rollup.count)
    values = {"days": list(days), "rollup": rollup.name, "smallest": SMALLEST, "needed": WEEKS_NEEDED}
    found: dict[date, list[Count]] = {}
    for row in connection.execute(text(statement), {**values, "widths": WIDTHS, "least": LEAST_WIDTH}):
        count = Count(row.key, row.counted, round(row.low), round(row.high), row.is_unusual)
        found.setdefault(row.day, []).append(count)
    return found


def _judgement(counts: Iterable[Count]) -> Judgement:
    total, *unusual = counts
    return Judgement(total=total, unusual=unusual)


_HISTORY = f"""
    select j.day, b.date
    from unnest(cast(:days as date[])) as j (day)
    join rollup_days b on b.rollup = :rollup and b.status = 'built'
        and b.date = any (array(select j.day - 7 * n from generate_series(1, {WEEKS}) as weeks (n)))
    where b.date >= (select min(date) from {{target}})
"""
_WEEKS = f"""
    select j.date as day, (select count(*) from ({_HISTORY}) h where h.day = j.date) as weeks
    from rollup_days j where j.rollup = :rollup and j.status = 'built' and j.date = any (cast(:days as date[]))
"""
# The key null stands for all keys.
_COUNTS = f"""
    with history as ({_HISTORY}),
    since as (select {{key}} as key, min(date) as date from {{target}} group by {{key}}),
    before as (
        select h.day, s.key, coalesce(t.{{count}}, 0) as counted
        from history h join since s on s.date <= h.date
        left join {{target}} t on t.{{key}} = s.key and t.date = h.date
        union all
        select h.day, null, coalesce((select sum({{count}}) from {{target}} t where t.date = h.date), 0)
        from history h
    ),
    usual as (
        select day, key, percentile_cont(array[0.25, 0.5, 0.75]) within group (order by counted) as quartiles
        from before group by day, key having count(*) >= :needed
    ),
    compared as (
        select u.day, u.key, u.quartiles[1] as low, u.quartiles[2] as middle, u.quartiles[3] as high,
               cast(:widths as double precision) * greatest(
                   ln((1 + u.quartiles[3]) / (1 + u.quartiles[1])), cast(:least as double precision)) as width,
               cast(coalesce(case when u.key is null
                                  then (select sum({{count}}) from {{target}} t where t.date = u.day)
                                  else t.{{count}} end, 0) as bigint) as counted
        from usual u left join {{target}} t on t.{{key}} = u.key and t.date = u.day
    ),
    judged as (
        select *, greatest(middle, counted) >= :smallest
                  and (1 + counted < (1 + low) * exp(-width) or 1 + counted > (1 + high) * exp(width)) as is_unusual
        from compared
    )
    select day, key, counted, low, high, is_unusual from judged
    where key is null or is_unusual
    order by day, key is not null, abs(counted - middle) desc, key
"""
