"""What a rollup is: a log, a target table, keys and measures, each declared once as SQLAlchemy Core expressions.

Refresh, rebuild, verify, audit, prune and the live views are built from these declarations. The declarations themselves
are in `calc_analytics/rollups.py`. Nothing here opens a connection.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from sqlalchemy import BigInteger, Column, ColumnElement, Integer, SmallInteger, Table, column
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql import visitors
from sqlalchemy.types import TypeEngine

from calc_analytics.errors import CalcAnalyticsError

_DIALECT = postgresql.dialect(paramstyle="named")  # no doubled percent signs
# The names of columns that statements compute begin so.
COMPUTED = "rollup_"
_GREATEST: dict[type[TypeEngine[Any]], int] = {
    SmallInteger: 2**15 - 1,
    Integer: 2**31 - 1,
    BigInteger: 2**63 - 1,
}


# Stored in `deleted` with the measures: shows whether the keys of the remaining rows changed.
KEYS_HASH = "#keys"
_WEIGHT = 1_000_003


class UnknownRollup(CalcAnalyticsError):
    """A name that no declared rollup has."""


def to_sql(expression: ColumnElement[Any]) -> str:
    """The expression as PostgreSQL text, with columns as bare names."""
    bare = visitors.replacement_traverse(expression, {}, _bare)
    return str(bare.compile(dialect=_DIALECT, compile_kwargs={"literal_binds": True}))


def type_to_sql(type_: TypeEngine[Any]) -> str:
    """The type's name in PostgreSQL."""
    return type_.compile(dialect=_DIALECT)


def _widest(type_: TypeEngine[Any]) -> str:
    return "BIGINT" if isinstance(type_, Integer) else type_to_sql(type_)


def _bare(element: Any, **_: Any) -> Any:
    return column(element.name, element.type) if isinstance(element, Column) else None


def _columns_of(expressions: Iterable[ColumnElement[Any]]) -> set[str]:
    return {each.name for one in expressions for each in visitors.iterate(one) if isinstance(each, Column)}


@dataclass(frozen=True)
class Measure:
    """A column of the target and the aggregate over log rows that fills it. Measures must be additive."""

    name: str
    aggregate: str
    type: str
    greatest: int
    """The greatest value that its column holds as it is declared; the table may have a wider one."""

    @property
    def is_count(self) -> bool:
        """Whether a log row adds at most one to it."""
        return self.aggregate.startswith("count(")


@dataclass(frozen=True)
class Ratio:
    """A figure for people: a day's total of a measure, per something that is counted of the same log rows.

    `per` is another measure of the same rollup, or an aggregate over the target of another rollup.
    """

    name: str
    measure: str
    per: str | ColumnElement[Any]

    @property
    def other(self) -> str:
        """The name of the other rollup's target, for an aggregate."""
        assert isinstance(self.per, ColumnElement)
        return next(each.table.name for each in visitors.iterate(self.per) if isinstance(each, Column))


@dataclass(frozen=True)
class Suspect:
    """Log rows that are counted as they are, but that a person should look at: those that match the condition."""

    name: str
    condition: ColumnElement[Any]


@dataclass(frozen=True)
class Check:
    """A statement about the target's rows that must hold, one asset check per declaration.

    A row that matches `violation` (an expression over the target's columns) fails the check. `explained_by` and
    `explained_in` (over the log's columns) name the log rows that explain a violation, and the column to list.
    """

    name: str
    violation: ColumnElement[Any]
    description: str
    is_warning: bool = False
    explained_by: ColumnElement[Any] | None = None
    explained_in: ColumnElement[Any] | None = None
    amount: ColumnElement[Any] | None = None
    """By how many log rows a target row violates it (over the target's columns)."""


@dataclass(frozen=True, eq=False)
class Rollup:
    """A daily rollup of the log into `target`: one row per day (`date`) and combination of keys.

    The target's primary key must be its keys and `date`. The first measure must count log rows.
    """

    target: Table
    key_expressions: Mapping[str, ColumnElement[Any]]
    aggregates: Mapping[str, ColumnElement[Any]]
    description: str
    suspects: Sequence[Suspect] = ()
    checks: Sequence[Check] = ()
    match_check: str = ""
    """Name of the check that compares with the log; default: the target's name and `_match_logs`."""
    ratios: Sequence[Ratio] = ()
    usual_check: str = ""
    """Name of the check that compares a day's counts with the same weekdays before; default: there is none."""

    def __post_init__(self) -> None:
        columns, keys = set(self.target.columns.keys()), {*self.key_expressions, "date"}
        primary = {each.name for each in self.target.primary_key.columns}
        if primary != keys:
            raise ValueError(f"{self.name}: the primary key is {sorted(primary)}, the keys are {sorted(keys)}")
        if missing := set(self.aggregates) - columns:
            raise ValueError(f"{self.name}: the table has no column {', '.join(sorted(missing))}")
        if other := [name for name in self.aggregates if type(self.target.columns[name].type) not in _GREATEST]:
            raise ValueError(f"{self.name}: the measure {', '.join(other)} is not SmallInteger, Integer or BigInteger")
        if not self.aggregates or self.measures[0].aggregate != "count(*)":
            raise ValueError(f"{self.name}: the first measure must be count(*)")
        if self.usual_check and len(self.key_expressions) > 1:
            raise ValueError(f"{self.name}: usual_check needs a single key")

    @property
    def name(self) -> str:
        """The rollup's name: its target table's."""
        return self.target.name

    @property
    def version(self) -> str:
        """Changes with what is counted: keys, measures, and the expressions that fill them."""
        expressions = {**self.key_expressions, **self.aggregates}
        counted = [
            f"{name} {type_to_sql(self.target.columns[name].type)} {to_sql(expressions[name])}" for name in expressions
        ]
        return hashlib.sha256("\n".join(counted).encode()).hexdigest()[:8]

    @property
    def match_check_name(self) -> str:
        """The name of the check that compares with the log."""
        return self.match_check or f"{self.name}_match_logs"

    @property
    def check_names(self) -> list[str]:
        """The names of its checks: the comparison with the log, the declared ones, and that with the weeks before."""
        usual = [self.usual_check] if self.usual_check else []
        return [self.match_check_name, *(check.name for check in self.checks), *usual]

    @property
    def live_view(self) -> str:
        """The view of stored statistics plus the rows that are not counted yet."""
        return f"{self.name}_live"

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The key columns besides `date`."""
        return tuple(self.key_expressions)

    @cached_property
    def measures(self) -> tuple[Measure, ...]:
        """The measures, in the order of their declaration."""
        return tuple(self._measure(name, aggregate) for name, aggregate in self.aggregates.items())

    def _measure(self, name: str, aggregate: ColumnElement[Any]) -> Measure:
        type_ = self.target.columns[name].type
        return Measure(name, to_sql(aggregate), type_to_sql(type_), _GREATEST[type(type_)])

    @property
    def count(self) -> str:
        """The measure that counts log rows."""
        return self.measures[0].name

    @cached_property
    def measure_names(self) -> list[str]:
        """The measures' column names."""
        return list(self.aggregates)

    @cached_property
    def key_columns(self) -> str:
        """'publisher_id, locality_id': ready for a select list."""
        return ", ".join(self.keys)

    @cached_property
    def column_names(self) -> list[str]:
        """Every column of the target, in the one order used everywhere."""
        return [*self.keys, "date", *self.measure_names]

    @cached_property
    def columns(self) -> str:
        """The same, ready for a select list."""
        return ", ".join(self.column_names)

    @cached_property
    def table_columns(self) -> str:
        """The same columns in the order of the table."""
        return ", ".join(each.name for each in self.target.columns if each.name in self.column_names)

    @cached_property
    def key_selects(self) -> str:
        """'publisher_id, date_bin(…) as hour': the keys, computed from log rows."""
        return ", ".join(f"{to_sql(each)} as {name}" for name, each in self.key_expressions.items())

    @cached_property
    def measure_selects(self) -> str:
        """'count(*) as total_calculations, …': the measures over log rows."""
        return self.each_measure("{aggregate} as {name}")

    @cached_property
    def suspect_selects(self) -> str:
        """', count(*) filter (where …) as negative_response_times': the suspects, to be added last."""
        return "".join(f", count(*) filter (where {to_sql(s.condition)}) as {s.name}" for s in self.suspects)

    @cached_property
    def group_by(self) -> str:
        """Positions of the keys in `key_selects`: '1, 2'."""
        return ", ".join(str(n) for n in range(1, len(self.keys) + 1))

    @cached_property
    def reads(self) -> set[str]:
        """The log columns that the rollup needs, besides the event time."""
        suspects = [each.condition for each in self.suspects]
        return _columns_of([*self.key_expressions.values(), *self.aggregates.values(), *suspects])

    @cached_property
    def key_columns_of_log(self) -> set[str]:
        """The log columns that are keys as they are, and so must not be null."""
        return {each.name for each in self.key_expressions.values() if isinstance(each, Column)}

    def keys_of(self, columns: Iterable[str]) -> dict[str, str] | None:
        """For each of these log columns, the key that holds it as it is; None if one of them is in no key."""
        held = {each.name: name for name, each in self.key_expressions.items() if isinstance(each, Column)}
        wanted = list(columns)
        return {name: held[name] for name in wanted} if all(name in held for name in wanted) else None

    @cached_property
    def key_sources(self) -> dict[str, set[str]]:
        """The log columns from which each key comes."""
        return {name: _columns_of([expression]) for name, expression in self.key_expressions.items()}

    @cached_property
    def row_hash(self) -> str:
        """SQL: a 64-bit hash of a row of the target; {name} of each column is to be filled in by `format`.

        PostgreSQL's hash of a record is linear in those of its columns: sums over rows would not change when two rows
        exchange a value. Hence the second hash. PostgreSQL hashes integers of all widths alike, so the hash does not
        change when a column is widened.
        """
        types = {each.name: _widest(each.type) for each in self.target.columns}
        values = ", ".join(f"cast({{{name}}} as {types[name]})" for name in self.column_names)
        return f"cast(hashint8extended(0, hash_record_extended(row({values}), 0)) as numeric)"

    def keys_hash(self, value: str) -> str:
        """SQL: each measure's value times a hash of the row's keys, to be summed up over rows; `value` is a pattern.

        It adds up like a measure: that of all rows is that of the log's and of the deleted ones together, whichever
        rows come or go; and it changes when a value moves from one key to another. As `row_hash`, it does not change
        when a column is widened.
        """
        types = {each.name: _widest(each.type) for each in self.target.columns}
        keys = ", ".join(f"cast({name} as {types[name]})" for name in self.keys)
        values = [f"cast({value.format(name=name)} as numeric)" for name in self.measure_names]
        weighted = " + ".join(f"{_WEIGHT**n} * {each}" for n, each in enumerate(values))
        return f"hashint8extended(0, hash_record_extended(row({keys}), 0)) * ({weighted})"

    def hash_of(self, alias: str) -> str:
        """SQL: the hash of the target's row with that alias."""
        return self.row_hash.format(**{name: f"{alias}.{name}" for name in self.column_names})

    @cached_property
    def or_add(self) -> str:
        """SQL: the end of an INSERT into the target that adds to the rows whose keys are there."""
        sums = self.each_measure(f"{{name}} = {self.name}.{{name}} + excluded.{{name}}")
        return f"on conflict ({self.key_columns}, date) do update set {sums}"

    def each_measure(self, pattern: str, joined_by: str = ", ") -> str:
        """The pattern once per measure, with {name}, {aggregate} and {type} filled in."""
        return joined_by.join(pattern.format(name=m.name, aggregate=m.aggregate, type=m.type) for m in self.measures)

    def totals_json(self, value: str = "sum({name})") -> str:
        """SQL: a JSON object of each measure's value; `value` is a pattern for `each_measure`."""
        pairs = self.each_measure("'{name}', " + value)
        return f"jsonb_build_object({pairs})"


@dataclass(frozen=True, eq=False)
class Log:
    """A table that others append to, and the rollups that are kept of it. All stand at the same snapshot."""

    table: Table
    event_time: str
    rollups: tuple[Rollup, ...]
    switched_off: tuple[Rollup, ...] = ()
    """Declared, and not kept now: their tables and records may still hold what was counted."""

    def __post_init__(self) -> None:
        for rollup in self.rollups:
            if unknown := {*rollup.reads, self.event_time} - set(self.table.columns.keys()):
                raise ValueError(f"{rollup.name}: the log {self.name} has no column {', '.join(sorted(unknown))}")
        if taken := [each.name for each in self.table.columns if each.name.startswith(COMPUTED)]:
            raise ValueError(f"{self.name}: names such as {taken[0]}, which begin with {COMPUTED}, are not usable")
        if twice := [name for name in dict.fromkeys(self.names) if self.names.count(name) > 1]:
            raise ValueError(f"{', '.join(twice)} is declared twice")

    @property
    def name(self) -> str:
        """The log table's name."""
        return self.table.name

    @property
    def id_column(self) -> str:
        """The first column of its primary key."""
        return str(next(iter(self.table.primary_key.columns)).name)

    @property
    def names(self) -> list[str]:
        """The rollups' names."""
        return [rollup.name for rollup in self.rollups]

    @cached_property
    def keys(self) -> set[str]:
        """The columns that are keys of some rollup as they are, and so must not be null."""
        return set().union(*(rollup.key_columns_of_log for rollup in self.rollups))

    @cached_property
    def reads(self) -> list[str]:
        """The columns that counting needs: those of every rollup, and the event time."""
        wanted = set().union(*(rollup.reads for rollup in self.rollups), {self.event_time})
        return [each.name for each in self.table.columns if each.name in wanted]

    def rollup(self, name: str) -> Rollup:
        """The rollup of that name; `UnknownRollup` if there is none."""
        for rollup in self.rollups:
            if rollup.name == name:
                return rollup
        raise UnknownRollup(f"there is no rollup '{name}': the rollups are {', '.join(self.names)}")

    def only(self, names: Sequence[str] | None) -> "Log":
        """The log with these of its rollups (None: all), in the order of their declaration."""
        if names is None:
            return self
        chosen = {self.rollup(name).name for name in names}
        kept = tuple(rollup for rollup in self.rollups if rollup.name in chosen)
        return replace(self, rollups=kept, switched_off=tuple(each for each in self.rollups if each not in kept))
