"""Log rows whose transaction id no transaction of this cluster has had yet: another cluster's, or written by hand.

They are not counted before the cluster's ids have reached theirs. A statement sees no row of a transaction that began
after its own snapshot, so any row beyond that is foreign.
"""

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.rollup.declaration import Log


class ForeignRows(CalcAnalyticsError):
    """There are log rows that are not counted, because their ids are another cluster's."""


def foreign_rows_sql(log: Log) -> str:
    """SQL: those rows, by index."""
    return (
        f"select from {log.name} where xact_id >= cast(cast(pg_snapshot_xmax(pg_current_snapshot()) as text) as bigint)"
    )


def adopt_sql(log: Log) -> str:
    """SQL: gives them the id of the transaction that runs it, so that a refresh counts them. For the log's owner."""
    return f"update {log.name} set xact_id = default where xact_id >= txid_snapshot_xmax(txid_current_snapshot())"


def require_none(connection: Connection, log: Log) -> None:
    """Raises `ForeignRows` if there are any."""
    if connection.execute(text(f"select exists ({foreign_rows_sql(log)})")).scalar():
        raise foreign_rows(log)


def foreign_rows(log: Log) -> ForeignRows:
    """The error."""
    return ForeignRows(
        f"{log.name} has rows with an xact_id that no transaction of this cluster has had yet: they came from another "
        "cluster (by logical replication or a dump) and are not counted. Leave xact_id out of what is copied, and "
        f"count them with '{adopt_sql(log)}'"
    )
