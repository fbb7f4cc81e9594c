"""The query that reduces archived rows to a rollup's rows, in the SQL of an engine, made from the rollup's declaration.

The declaration's PostgreSQL text is parsed and written for DuckDB or Spark by sqlglot. Integers must be the same in
every engine. So only what the engines are known to compute alike is translated, in a form that they do: instants are
microseconds since 1970, division is by positive whole numbers, sums have 38 digits. Whatever else an expression uses is
refused in one line: floating-point numbers, whose last digits differ between engines, and everything that depends on a
session's time zone. Nothing here opens a connection.
"""

from typing import TYPE_CHECKING, Any

from sqlalchemy import Boolean, Date, DateTime, Integer

from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.rollup.declaration import Log, Rollup, to_sql

if TYPE_CHECKING:
    import pyarrow

# The dialects by their names in sqlglot; how each makes microseconds of an instant, and an instant of these.
DUCKDB, SPARK = "duckdb", "spark"
_MICROSECONDS = {DUCKDB: ("epoch_us", "make_timestamp"), SPARK: ("unix_micros", "timestamp_micros")}
# Holds every sum of 64-bit integers.
_SUM = "DECIMAL(38, 0)"
_HOUR = 3_600_000_000
# What `utc_hour` is in PostgreSQL: the first and the last argument of date_bin.
_HOUR_BIN = ("'1 hour'", "CAST('2000-01-01 00:00:00+00' AS TIMESTAMPTZ)")
# What an expression is.
_COMPARISONS = ("eq", "neq", "lt", "lte", "gt", "gte", "nullsafeeq", "nullsafeneq")
_INTEGER, _BOOLEAN, _DATE, _INSTANT, _NULL = "an integer", "a boolean", "a date", "an instant", "null"


class CannotTranslate(CalcAnalyticsError):
    """An expression of a rollup uses what engines other than PostgreSQL may compute differently."""


def reduction(rollup: Rollup, log: Log, dialect: str, relation: str) -> str:
    """SQL in that dialect (`DUCKDB` or `SPARK`): the rollup's rows of the relation; columns are those of
    `result_schema`.

    The relation has the archive's columns and `date`, the day to which a row belongs. Raises `CannotTranslate`.
    """
    columns = {"date": "cast(l.date as date)"}
    columns |= {name: _translate(rollup, log, name, dialect) for name in [*rollup.keys, *rollup.measure_names]}
    selects = ", ".join(f"{value} as {_quote(name, dialect)}" for name, value in columns.items())
    positions = ", ".join(str(n + 1) for n in range(len(rollup.keys) + 1))
    return f"select {selects} from {relation} as l group by {positions}"


def result_schema(rollup: Rollup, log: Log) -> "pyarrow.Schema":
    """The columns of a reduction: `date`, the keys, the measures, in the order of their declaration."""
    import pyarrow

    types = {
        _INTEGER: pyarrow.int64(),
        _BOOLEAN: pyarrow.bool_(),
        _DATE: pyarrow.date32(),
        _INSTANT: pyarrow.timestamp("us", "UTC"),
    }
    keys = [(name, types[_parse(rollup, log, name)[1]]) for name in rollup.keys]
    return pyarrow.schema(
        [("date", pyarrow.date32()), *keys, *((name, pyarrow.decimal128(38)) for name in rollup.measure_names)]
    )


def _quote(name: str, dialect: str) -> str:
    from sqlglot import exp

    return exp.to_identifier(name, quoted=True).sql(dialect)


def _parse(rollup: Rollup, log: Log, name: str) -> tuple[Any, str]:
    """The parsed expression of a key or measure, and what it is."""
    import sqlglot

    written = to_sql({**rollup.key_expressions, **rollup.aggregates}[name])
    try:
        parsed = sqlglot.parse_one(written, dialect="postgres")
        return parsed, _Kinds(log).of(parsed)
    except (sqlglot.ParseError, _Unknown) as error:
        used = error if isinstance(error, _Unknown) else "a form that is not understood"
        raise CannotTranslate(
            f"{rollup.name} cannot be counted from the archive: {name} is {written}, and uses {used}. Declare it with "
            "whole numbers, comparisons, CASE, sums and counts"
        ) from None


def _translate(rollup: Rollup, log: Log, name: str, dialect: str) -> str:
    parsed, kind = _parse(rollup, log, name)
    written = _rewritten(parsed, dialect).sql(dialect, identify=True)
    if name in rollup.aggregates:
        return f"cast({written} as {_SUM})"
    return f"cast({written} as bigint)" if kind == _INTEGER else str(written)


def _rewritten(node: Any, dialect: str) -> Any:
    """The node, and what is in it, in a form that all engines compute alike."""
    for child in list(node.iter_expressions()):
        key, index = child.arg_key, child.index
        node.set(key, _rewritten(child, dialect), index)
    return _alike(node, dialect)


def _alike(node: Any, dialect: str) -> Any:
    from sqlglot import exp

    match node:
        case exp.Column():
            return exp.column(node.name, table="l")
        case exp.Div():
            return exp.IntDiv(this=node.this, expression=node.expression)
        case exp.DateBin():
            to_number, to_instant = _MICROSECONDS[dialect]
            number = exp.func(to_number, node.expression)
            # Before 1970 numbers are negative, and so are their remainders.
            past = exp.paren(exp.paren(number % _HOUR) + _HOUR) % _HOUR
            return exp.func(to_instant, number - exp.paren(past))
        case exp.Sum() if dialect == SPARK:
            # Its sums of 64-bit integers have 64 bits.
            return exp.Sum(this=exp.cast(node.this, _SUM, dialect=dialect))
    return node


class _Unknown(Exception):
    """What an expression uses that is not known to be the same in every engine."""


class _Kinds:
    """What the parts of an expression are; raises `_Unknown` for a part that engines may compute differently."""

    def __init__(self, log: Log) -> None:
        self.columns = {each.name: _kind_of_type(each.type) for each in log.table.columns}

    def of(self, node: Any) -> str:
        """What the expression is."""
        from sqlglot import exp

        match node:
            case exp.Paren() | exp.Filter():
                return self._of_wrapped(node)
            case exp.Column() if node.name in self.columns:
                return self.columns[node.name]
            case exp.Literal() if not node.is_string and node.this.isdigit() and int(node.this) < 2**63:
                return _INTEGER
            case exp.Null() | exp.Boolean():
                return _NULL if isinstance(node, exp.Null) else _BOOLEAN
            case exp.Count() | exp.Sum():
                return self._of_aggregate(node)
            case exp.Case() | exp.Coalesce() | exp.Nullif() | exp.Greatest() | exp.Least():
                return self._of_choice(node)
            case exp.DateBin() if (node.this.sql("postgres"), node.args["unit"].sql("postgres")) == _HOUR_BIN:
                return self._all(_INSTANT, node.expression)
            case exp.Predicate() | exp.Connector() | exp.Not():
                return self._of_condition(node)
        return self._of_number(node)

    def _of_wrapped(self, node: Any) -> str:
        from sqlglot import exp

        if isinstance(node, exp.Filter):
            self._all(_BOOLEAN, node.expression.this)
        return self.of(node.this)

    def _of_number(self, node: Any) -> str:
        """Arithmetic with whole numbers."""
        from sqlglot import exp

        match node:
            case exp.Neg() | exp.Abs():
                return self._all(_INTEGER, node.this)
            case exp.Add() | exp.Sub() | exp.Mul():
                return self._all(_INTEGER, node.this, node.expression)
            case exp.Div() | exp.Mod() if isinstance(node.expression, exp.Literal) and node.expression.this != "0":
                return self._all(_INTEGER, node.this, node.expression)
            case exp.Cast() if node.to.this in exp.DataType.SIGNED_INTEGER_TYPES:
                if self.of(node.this) in (_INTEGER, _BOOLEAN):
                    return _INTEGER
        raise _Unknown(node.sql("postgres"))

    def _of_aggregate(self, node: Any) -> str:
        """Sums of whole numbers, and counts; not those of distinct values, which do not add up."""
        from sqlglot import exp

        if isinstance(node, exp.Sum):
            return self._all(_INTEGER, node.this)
        if isinstance(node.this, exp.Distinct) or node.expressions:
            raise _Unknown(node.sql("postgres"))
        if not isinstance(node.this, exp.Star):
            self.of(node.this)
        return _INTEGER

    def _of_choice(self, node: Any) -> str:
        """One of several values, all of one kind."""
        from sqlglot import exp

        if not isinstance(node, exp.Case):
            return self._same(node.this, *([node.expression] if node.expression else []), *node.expressions)
        conditions = [each.this for each in node.args["ifs"]]
        if node.this is None:
            self._all(_BOOLEAN, *conditions)
        else:
            self._same(node.this, *conditions)
        results = [each.args["true"] for each in node.args["ifs"]]
        return self._same(*results, *([node.args["default"]] if node.args.get("default") else []))

    def _of_condition(self, node: Any) -> str:
        from sqlglot import exp

        match node:
            case exp.And() | exp.Or():
                return self._all(_BOOLEAN, node.this, node.expression)
            case exp.Not():
                return self._all(_BOOLEAN, node.this)
            case exp.Is() if isinstance(node.expression, exp.Null):
                self.of(node.this)
            case exp.Is() if isinstance(node.expression, exp.Boolean):
                self._all(_BOOLEAN, node.this)
            case exp.Between():
                self._same(node.this, node.args["low"], node.args["high"])
            case exp.In() if node.expressions:
                self._same(node.this, *node.expressions)
            case _ if node.key in _COMPARISONS:
                self._same(node.this, node.expression)
            case _:
                raise _Unknown(node.sql("postgres"))
        return _BOOLEAN

    def _all(self, kind: str, *nodes: Any) -> str:
        """Raises unless all of the nodes are of that kind, or null."""
        for node in nodes:
            if self.of(node) not in (kind, _NULL):
                raise _Unknown(f"{node.sql('postgres')}, which is not {kind}")
        return kind

    def _same(self, *nodes: Any) -> str:
        """The kind of all of the nodes."""
        kinds = {self.of(node): node for node in nodes}
        found = [kind for kind in kinds if kind != _NULL]
        if len(found) > 1:
            raise _Unknown(f"{found[0]} beside {kinds[found[1]].sql('postgres')}, which is {found[1]}")
        return found[0] if found else _NULL


def _kind_of_type(type_: Any) -> str:
    kinds = {Boolean: _BOOLEAN, Date: _DATE, DateTime: _INSTANT, Integer: _INTEGER}
    return next(kind for each, kind in kinds.items() if isinstance(type_, each))
