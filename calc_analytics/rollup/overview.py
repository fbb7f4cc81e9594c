"""The ledger at a glance, for the page that people look at: each day's state, and today's totals. Nothing is changed.

Cost: the rows of the ledger; the size of the log and of the statistics does not matter.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date
from itertools import groupby

from sqlalchemy import text

from calc_analytics.database.engine import transaction
from calc_analytics.rollup import ledger
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.status import STATES, UNRECORDED, UNSEEN, WORD


@dataclass(frozen=True)
class DayOverview:
    """A day: its state, that of each rollup, and the log rows that are counted (None: it was never counted).

    The words are `status.STATES`. A rollup that has no record of a day that others have is `unrecorded`.
    """

    day: date
    state: str
    rollups: dict[str, str]
    rows: int | None


@dataclass(frozen=True)
class YearCount:
    """How many days of a year have that state, and the first and the last of them."""

    year: int
    state: str
    days: int
    first: date
    last: date


@dataclass(frozen=True)
class Overview:
    """The days of a range, oldest first; the days outside of it, summed up; and each measure's total of today.

    `totals` and `count`, the measure that counts log rows, are the first rollup's. `totals` is None if today was never
    counted whole. `rollups` are the names of all.
    """

    first: date
    last: date
    days: list[DayOverview]
    others: list[YearCount]
    totals: dict[str, int] | None
    count: str
    rollups: list[str]

    def with_unseen(self, unseen: Iterable[date]) -> "Overview":
        """With the days that `unseen.Search` has found, unless they were recorded in every rollup meanwhile."""
        by_day = {day.day: day for day in self.days}
        outside = []
        for day in unseen:
            if self.first <= day <= self.last:
                by_day[day] = _unseen(by_day.get(day, DayOverview(day, UNSEEN, {}, None)), self.rollups)
            else:
                outside.append(day)
        others = [*self.others, *_by_year(outside)]
        return replace(
            self,
            days=[by_day[day] for day in sorted(by_day)],
            others=sorted(others, key=lambda each: (each.year, STATES.index(each.state))),
        )


def overview(db: Database, first: date, last: date, today: date) -> Overview:
    """Reads the ledger; days from `first` to `last` are listed. Raises what `ledger.read` raises."""
    parameters = {
        "rollups": db.log.names,
        "counts": [rollup.count for rollup in db.log.rollups],
        "states": list(STATES),
        "first": first,
        "last": last,
        "rollup": db.log.names[0],
        "today": today,
    }
    with transaction(db.engine) as connection:
        ledger.read(connection, db)
        days = [DayOverview(*row) for row in connection.execute(_DAYS, parameters)]
        others = [YearCount(*row) for row in connection.execute(_OTHERS, parameters)]
        counted = connection.execute(_TODAY, parameters).scalar()
    main = db.log.rollups[0]
    totals = None if counted is None else {name: int(counted.get(name, 0)) for name in main.measure_names}
    complete = [_complete(day, db.log.names) for day in days]
    return Overview(first, last, complete, others, totals, main.count, db.log.names)


def _complete(day: DayOverview, names: list[str]) -> DayOverview:
    """The day with a word for every rollup, in their order."""
    return replace(day, rollups={name: day.rollups.get(name, UNRECORDED) for name in names})


def _unseen(day: DayOverview, names: list[str]) -> DayOverview:
    """The day, of which a search has found log rows: unseen in the rollups that have no record of it."""
    words = {name: day.rollups.get(name, UNRECORDED) for name in names}
    rollups = {name: UNSEEN if word == UNRECORDED else word for name, word in words.items()}
    return replace(day, state=min(rollups.values(), key=STATES.index), rollups=rollups)


def _by_year(unseen: Iterable[date]) -> list[YearCount]:
    years = [list(days) for _, days in groupby(sorted(unseen), key=lambda day: day.year)]
    return [YearCount(days[0].year, UNSEEN, len(days), days[0], days[-1]) for days in years]


# A row for each day on record: its place in :states, the words of its rollups, and the rows that the first one counted.
_EACH_DAY = f"""
    with record as (
        select d.date, d.rollup, {WORD} as word,
               case k.place when 1 then cast(d.counted ->> k.count as bigint) end as rows
        from unnest(cast(:rollups as text[]), cast(:counts as text[])) with ordinality as k (rollup, count, place)
        join rollup_days d using (rollup)
        where {{chosen}}
    ),
    day as (
        select date, jsonb_object_agg(rollup, word) as words, max(rows) as rows,
               least(min(array_position(cast(:states as text[]), word)),
                     case when count(*) < cardinality(cast(:rollups as text[]))
                          then array_position(cast(:states as text[]), '{UNRECORDED}') end) as place
        from record group by date
    )
"""
_DAYS = text(
    f"""{_EACH_DAY.format(chosen="d.date between :first and :last")}
    select date, (cast(:states as text[]))[place], words, rows from day order by date
    """
)
_OTHERS = text(
    f"""{_EACH_DAY.format(chosen="d.date not between :first and :last")}
    select cast(extract(year from date) as integer), (cast(:states as text[]))[place], count(*), min(date), max(date)
    from day group by 1, place order by 1, place
    """
)
_TODAY = text("select counted from rollup_days where rollup = :rollup and date = :today")
