"""The SQL contract for readers: views and functions that answer what an API and its pages ask of the statistics.

Bodies of functions are text to PostgreSQL, so they hold no lock on a column's type; whoever changes a type (`widen`)
installs the contract again in the same transaction.
"""

from collections.abc import Mapping

from sqlalchemy import Table, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from calc_analytics.database import relations
from calc_analytics.database.contract.function import Function
from calc_analytics.database.contract.functions import (
    FUNCTIONS,
    STATS,
    USAGE_COMMENTS,
    VIEWS,
)
from calc_analytics.database.errors import sqlstate
from calc_analytics.database.sql import quote_identifier, quote_literal
from calc_analytics.database.tables import (
    calculation_latency_daily,
    calculation_locality_stats_daily,
    calculation_stats_daily,
    calculation_stats_hourly,
    rollup_days,
    rollup_state,
)
from calc_analytics.database.views import create_view, drop_view, replace_view
from calc_analytics.errors import CalcAnalyticsError

# Each comment begins with it; what has another comment is another program's.
MARK = "calc_analytics: "
ROLLUPS = (
    calculation_stats_daily,
    calculation_locality_stats_daily,
    calculation_stats_hourly,
    calculation_latency_daily,
)
# A function's columns would change: invalid_function_definition.
_OTHER_COLUMNS = "42P13"


class NameTaken(CalcAnalyticsError):
    """Another program's view or function has a name of the contract; nothing was changed."""


def install(connection: Connection) -> None:
    """Creates the views and functions, or replaces them, in the caller's transaction; grants stay.

    Raises `NameTaken` if another program has a view or function of such a name, `ViewInUse` if its view depends on one
    whose columns change.
    """
    require_free_names(connection)
    schema = _schema(connection)
    names = _names(connection, schema)
    dropped = {}
    for function in FUNCTIONS:
        if not _replaced(connection, function, names):
            view = f"{schema}.{function.name.removesuffix('_rows')}"
            dropped[view] = drop_view(connection, view)
            _run(connection, f"drop function {names[function.name]}({function.types})")
            _run(connection, function.create(names))
        comment = quote_literal(MARK + function.comment)
        _run(connection, f"comment on function {names[function.name]}({function.types}) is {comment}")
    for name, comment in VIEWS.items():
        view, query = f"{schema}.{name}", f"select * from {names[f'{name}_rows']}()"
        if dropped.get(view):
            create_view(connection, view, query, dropped[view])
        else:
            replace_view(connection, view, query)
        _describe(connection, view, comment)


def _run(connection: Connection, statement: str) -> None:
    """As it is: percent signs and colons mean nothing."""
    connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def _replaced(connection: Connection, function: Function, names: Mapping[str, str]) -> bool:
    """Creates or replaces the function, which keeps its grants and what depends on it; false if its columns change."""
    try:
        with connection.begin_nested():
            _run(connection, function.create(names))
    except DBAPIError as error:
        if sqlstate(error) != _OTHER_COLUMNS:
            raise
        return False
    return True


def _describe(connection: Connection, view: str, comment: str) -> None:
    _run(connection, f"alter view {view} set (security_invoker = true)")
    _run(connection, f"comment on view {view} is {quote_literal(MARK + comment)}")
    for column in relations.column_names(connection, view):
        about = quote_literal(USAGE_COMMENTS[column])
        _run(connection, f"comment on column {view}.{quote_identifier(column)} is {about}")


def _names(connection: Connection, schema: str) -> dict[str, str]:
    """What the names in brackets stand for. A rollup that is not kept stands for no rows: its table may hold old ones,
    may be another program's, and may be closed to those who ask."""
    publisher_type = relations.integer_types(connection, STATS)["publisher_id"]
    kept = set(connection.execute(_KEPT).scalars())
    places = {name: f"{_place(connection, name)}.{name}" for name in (*kept, rollup_state.name, rollup_days.name)}
    hides = [f"row_security_active($name${places[name]}$name$)" for name in sorted(places)]
    return {
        **{table.name: places.get(table.name) or _no_rows(table, publisher_type) for table in ROLLUPS},
        **{name: places[name] for name in (rollup_state.name, rollup_days.name)},
        **{function.name: f"{schema}.{function.name}" for function in FUNCTIONS},
        "publisher_type": publisher_type,
        "hides": " or ".join(hides),
    }


def _no_rows(table: Table, publisher_type: str) -> str:
    types = {column.name: column.type.compile(dialect=postgresql.dialect()) for column in table.columns}
    columns = {**types, "publisher_id": publisher_type}
    return f"(select {', '.join(f'cast(null as {type_}) as {name}' for name, type_ in columns.items())} where false)"


def _place(connection: Connection, name: str) -> str:
    return str(connection.execute(_SCHEMA, {"table": name}).scalar_one())


def _schema(connection: Connection) -> str:
    """The schema of the contract: that of the state, or where that will be created."""
    return _place(connection, rollup_state.name)


def require_free_names(connection: Connection) -> None:
    """Raises `NameTaken` if another program has a view or function of such a name."""
    schema = _schema(connection)
    parameters = {
        "schema": schema,
        "mark": MARK + "%",
        "functions": [function.name for function in FUNCTIONS],
        "views": list(VIEWS),
    }
    taken = connection.execute(_TAKEN, parameters).scalars().all()
    if taken:
        raise NameTaken(
            f"{taken[0]} in the schema {schema} is not of calc_analytics, which needs the name for its readers: rename "
            "it, and run 'calc-analytics migrate' again; nothing was changed"
        )


_KEPT = text("select unnest(rollups) from rollup_state")
_SCHEMA = text(
    """
    select quote_ident(coalesce((
        select n.nspname from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.oid = to_regclass(quote_ident(:table))), current_schema()))
    """
)
_TAKEN = text(
    """
    select format('the function %s(%s)', proname, pg_get_function_identity_arguments(oid)) from pg_proc
    where pronamespace = cast(:schema as regnamespace) and proname = any (cast(:functions as text[]))
      and coalesce(obj_description(oid, 'pg_proc') not like :mark, true)
    union all
    select 'the table or view ' || relname from pg_class
    where relnamespace = cast(:schema as regnamespace) and relname = any (cast(:views as text[]))
      and coalesce(obj_description(oid, 'pg_class') not like :mark, true)
    """
)
