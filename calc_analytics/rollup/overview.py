"""The ledger at a glance, for the page that people look at: each day's state, and today's totals. Nothing is changed.

Cost: the rows of the ledger, whatever the size of the log and of the statistics.
"""

from dataclasses import dataclass
from datetime import date

from sqlalchemy import text

from calc_analytics.database.engine import transaction
from calc_analytics.rollup import ledger
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.status import DIFFERS

UNRECORDED = "unrecorded"
# A day's state is the first of these that one of its rollups has.
STATES = ("differs", "overflow", UNRECORDED, "stale", "pending", "frozen", "pruned", "built")


@dataclass(frozen=True)
class DayOverview:
    """A day on record: its state, that of each rollup, and the log rows that are counted (None: it was never counted).

    The words are those of `status.DayStatus.word`; `unrecorded` is a day that another rollup has a record of.
    """

    day: date
    state: str
    rollups: dict[str, str]
    rows: int | None


@dataclass(frozen=True)
class DayCount:
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
    counted whole.
    """

    days: list[DayOverview]
    others: list[DayCount]
    totals: dict[str, int] | None
    count: str


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
        others = [DayCount(*row) for row in connection.execute(_OTHERS, parameters)]
        counted = connection.execute(_TODAY, parameters).scalar()
    main = db.log.rollups[0]
    totals = None if counted is None else {name: int(counted.get(name, 0)) for name in main.measure_names}
    return Overview([_complete(day, db.log.names) for day in days], others, totals, main.count)


def _complete(day: DayOverview, names: list[str]) -> DayOverview:
    """The day with a word for every rollup, in their order."""
    return DayOverview(day.day, day.state, {name: day.rollups.get(name, UNRECORDED) for name in names}, day.rows)


# A row for each day on record: its place in :states, the words of its rollups, and the rows that the first one counted.
_EACH_DAY = f"""
    with record as (
        select d.date, d.rollup,
               case when {DIFFERS} then 'differs'
                    when d.status = 'built' and cast(d.deleted ->> k.count as numeric) <> 0 then 'pruned'
                    else d.status end as word,
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
