"""Creates the next partitions of the log table: the step of its ranges, the names, and the statements.

A new table is created and attached. ATTACH PARTITION stops no writer, unlike CREATE TABLE … PARTITION OF; only a
default partition is locked, and read for rows of the range.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo

from sqlalchemy import text
from sqlalchemy.engine import Connection, Engine

from calc_analytics import days
from calc_analytics.database.engine import WHOLE_DAYS, transaction
from calc_analytics.database.log_partitions import Layout, Partition, attempt, escaped, read_layout
from calc_analytics.database.migrate import require_ownership
from calc_analytics.database.sql import quote_identifier
from calc_analytics.errors import CalcAnalyticsError

AHEAD_LOCK = 724_410_052
# The newest of so many partitions show the step.
RECENT = 6
DAYS = {"day": 1, "week": 7}
# How many partitions after the current one are created, unless the caller says: a week of them at least.
AHEAD = {"month": 1, "week": 2, "day": 8}
# Parts of names, the longest first; a partition of less than a month needs the day in its name.
_OF_MONTHS = ("%Y_%m", "%Y-%m", "%Y%m")
_OF_DAYS = ("%Y_%m_%d", "%Y-%m-%d", "%Y%m%d")


class NoPartitions(CalcAnalyticsError):
    """Partitions cannot be created: the table has none, or none by time, or something is in the way."""


@dataclass(frozen=True)
class Step:
    """How long each partition is ('month', 'week' or 'day'), and in which zone it begins at midnight."""

    unit: str
    zone: tzinfo

    def after(self, begin: date) -> date:
        """The first day of the next partition."""
        if self.unit == "month":
            return date(begin.year + begin.month // 12, begin.month % 12 + 1, 1)
        return begin + timedelta(days=DAYS[self.unit])

    def midnight(self, day: date) -> datetime:
        """The instant at which the day begins, in UTC."""
        return datetime.combine(day, time(), self.zone).astimezone(timezone.utc)

    def fits(self, partition: Partition) -> bool:
        """Whether that is the step of the partition."""
        assert partition.lower is not None
        begin = partition.lower.astimezone(self.zone).date()
        is_whole = self.midnight(begin) == partition.lower and (self.unit != "month" or begin.day == 1)
        return is_whole and self.midnight(self.after(begin)) == partition.upper

    def first(self, newest: Partition, now: datetime) -> date:
        """The first day of the partition in which that instant lies, if partitions follow each other without a gap."""
        assert newest.lower is not None
        today, begin = now.astimezone(self.zone).date(), newest.lower.astimezone(self.zone).date()
        if self.unit == "month":
            return today.replace(day=1)
        return begin + (today - begin) // timedelta(days=DAYS[self.unit]) * timedelta(days=DAYS[self.unit])


def recognize_step(layout: Layout, zones: Sequence[str]) -> tuple[Step, Partition] | None:
    """The step of the newest partitions, and the newest; None if they have no common one."""
    ranged = [each for each in layout.partitions if each.lower is not None and each.upper is not None]
    newest = sorted(ranged, key=lambda each: each.upper or datetime.max)[-RECENT:]
    for zone in zones if newest else ():
        for unit in ("month", "week", "day"):
            step = Step(unit, days.zone(zone))
            if all(step.fits(each) for each in newest):
                return step, newest[-1]
    return None


def create_ahead(engine: Engine, log: str, event_time: str, zone: str, ahead: int | None, now: datetime) -> list[str]:
    """Creates what is missing of the current partition and of so many after it (None: as usual); returns their names.

    Safe to repeat, and at the same time. Raises `NoPartitions`, after which nothing was created.
    """
    with transaction(engine) as connection:
        connection.execute(WHOLE_DAYS)
        require_ownership(connection, [log])
        connection.execute(_TURN, {"lock": AHEAD_LOCK, "log": log})
        layout = _require_layout(connection, log, event_time)
        found = recognize_step(layout, ("UTC", zone))
        if found is None:
            raise NoPartitions(
                f"the partitions of {log} have no step that is known here (months, weeks or days from midnight to "
                "midnight): create the next one as the last ones were"
            )
        number = AHEAD[found[0].unit] if ahead is None else ahead
        return _create_missing(connection, layout, *found, number, now, event_time)


def _require_layout(connection: Connection, log: str, event_time: str) -> Layout:
    layout = read_layout(connection, log, event_time)
    if layout is None:
        raise NoPartitions(f"{log} is not partitioned: 'calc-analytics doctor --partitioning' shows how to change that")
    if not layout.is_by_time:
        raise NoPartitions(
            f"{log} is not partitioned by ranges of {event_time}, so no partition is to be created ahead"
        )
    if manager := partman_schema(connection, log):
        raise NoPartitions(f"pg_partman (schema {manager}) creates the partitions of {log}: nothing was created")
    return layout


def partman_schema(connection: Connection, log: str) -> str | None:
    """The schema of pg_partman's configuration that names the log table; None if there is none that can be read."""
    for schema in connection.execute(_PARTMAN).scalars():
        statement = f"select exists (select from {quote_identifier(schema)}.part_config where {_IS_LOG})"
        if connection.execute(text(statement), {"log": log}).scalar():
            return str(schema)
    return None


def _create_missing(
    connection: Connection, layout: Layout, step: Step, newest: Partition, ahead: int, now: datetime, event_time: str
) -> list[str]:
    """Of the current period and so many after it, creates those that have no partition."""
    begin, created = step.first(newest, now), list[str]()
    for _ in range(ahead + 1):
        first, end = step.midnight(begin), step.midnight(step.after(begin))
        there = [each for each in layout.partitions if each.is_ranged and each.overlaps(first, end)]
        if not there:
            created.append(_create(connection, layout, newest, _name(newest, step, begin), first, end, event_time))
        elif not all(each.holds(first) and (each.upper is None or each.upper >= end) for each in there):
            raise NoPartitions(
                f"{there[0].name} has a part of the range from {first:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC: "
                "nothing was created"
            )
        begin = step.after(begin)
    return created


def _name(newest: Partition, step: Step, begin: date) -> str:
    """The name of the newest partition with another date; where it has none, the log's name and the date."""
    assert newest.lower is not None
    before = newest.lower.astimezone(step.zone).date()
    for form in (*_OF_DAYS, *(_OF_MONTHS if step.unit == "month" else ())):
        start, found, rest = newest.relname.rpartition(before.strftime(form))
        if found:
            return f"{start}{begin.strftime(form)}{rest}"
    log = newest.parent_path.rpartition(".")[2].strip('"')
    return f"{log}_{begin.strftime(_OF_MONTHS[0] if step.unit == 'month' else _OF_DAYS[0])}"


def _create(
    connection: Connection,
    layout: Layout,
    newest: Partition,
    name: str,
    begin: datetime,
    end: datetime,
    event_time: str,
) -> str:
    """Creates and attaches the partition like the log table; returns its name."""
    if not newest.is_plain:
        raise NoPartitions(
            f"{newest.name} has partitions of its own: create the next one as it was created; nothing was created"
        )
    path = f"{quote_identifier(newest.schema)}.{quote_identifier(name)}"
    if connection.execute(text("select to_regclass(:path)"), {"path": path}).scalar() is not None:
        raise NoPartitions(f"there is a table {name} that is no partition: rename it; nothing was created")
    _require_free_range(connection, layout.default, begin, end, event_time)

    def work() -> None:
        for statement in _statements(connection, newest, path, begin, end):
            connection.execute(text(escaped(statement)))

    relations = [newest.parent_oid, *([layout.default.oid] if layout.default else [])]
    if waiting := attempt(connection, relations, work):
        raise NoPartitions(f"{name} cannot be attached to the log table: {waiting}; nothing was created")
    return name


def _require_free_range(
    connection: Connection, default: Partition | None, begin: datetime, end: datetime, event_time: str
) -> None:
    """Raises `NoPartitions` if the default partition has rows of the range."""
    if default is None:
        return
    of_range = f"select from only {escaped(default.path)} where {event_time} >= :begin and {event_time} < :end"
    if connection.execute(text(f"select exists ({of_range})"), {"begin": begin, "end": end}).scalar():
        raise NoPartitions(
            f"the default partition {default.name} has rows of {begin:%Y-%m-%d} to {end:%Y-%m-%d}: move them to a "
            f"table of their own and attach that; nothing was created"
        )


def _statements(connection: Connection, newest: Partition, path: str, begin: datetime, end: datetime) -> list[str]:
    """An identity and indexes come with the attachment; an identity of the table's own would be refused."""
    like = "including defaults including constraints including generated including storage including compression"
    owner = connection.execute(_OWNER, {"oid": newest.parent_oid}).scalar_one()
    bounds = f"from ('{begin.isoformat()}') to ('{end.isoformat()}')"
    return [
        f"create table {path} (like {newest.parent_path} {like})",
        f"alter table {path} owner to {owner}",
        f"alter table {newest.parent_path} attach partition {path} for values {bounds}",
    ]


_OWNER = text("select quote_ident(pg_get_userbyid(relowner)) from pg_class where oid = :oid")
_TURN = text("select pg_advisory_xact_lock(:lock, hashtext(:log))")
_PARTMAN = text(
    """
    select cast(n.nspname as text) from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relname = 'part_config' and c.relkind = 'r' and has_table_privilege(c.oid, 'SELECT')
      and has_schema_privilege(n.oid, 'USAGE')
      and exists (select from pg_attribute where attrelid = c.oid and attname = 'parent_table')
    order by 1
    """
)
# By name: looking up the tables of others may need rights in their schemas.
_IS_LOG = """
    cast(parent_table as text) in (
        select unnest(array[n.nspname || '.' || c.relname, format('%I.%I', n.nspname, c.relname)])
        from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = to_regclass(:log))
"""
