"""The tables, as SQLAlchemy Core: the API's two, and the two that hold the rollups' state.

`calculation_logs` belongs to the API: the project adds `xact_id` and
indexes to it, nothing else.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Float,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import UserDefinedType

metadata = MetaData()


class PgSnapshot(UserDefinedType[str]):
    """PostgreSQL's `pg_snapshot`, read and written as text ('xmin:xmax:xip,…')."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """The type's name in DDL."""
        return "pg_snapshot"


def _count(name: str, type_: type[Integer] | type[BigInteger] = Integer) -> Column[int]:
    return Column(name, type_, nullable=False, server_default=text("0"))


calculation_logs = Table(
    "calculation_logs",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("publisher_id", Integer, nullable=False),
    Column("locality_id", BigInteger, nullable=False),
    Column("date_calculated", Date, nullable=False),
    Column("cache_hit", Boolean, nullable=False, server_default=text("false")),
    Column("response_time_ms", SmallInteger),
    Column("zman_count", SmallInteger),
    Column("source", SmallInteger, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
)

calculation_stats_daily = Table(
    "calculation_stats_daily",
    metadata,
    Column("publisher_id", Integer, primary_key=True, autoincrement=False),
    Column("date", Date, primary_key=True),
    _count("total_calculations"),
    _count("cache_hits"),
    _count("total_response_time_ms", BigInteger),
    _count("source_web"),
    _count("source_api"),
    _count("source_external"),
)

rollup_state = Table(
    "rollup_state",
    metadata,
    Column("rollup", Text, primary_key=True, comment="the rollup's name: its target table"),
    Column("timezone", Text, nullable=False, comment="the reporting time zone all its days are built in"),
    Column("system_identifier", BigInteger, nullable=False, comment="the cluster whose transaction ids these are"),
    Column("snapshot", PgSnapshot, nullable=False, comment="logs visible in it are counted, in every built day"),
    Column("refreshed_at", DateTime(timezone=True), comment="when the snapshot was last moved"),
    Column("relation", BigInteger, comment="this table's oid when the row was written"),
    Column("written_by", BigInteger, comment="the transaction that wrote the row: its xmin, unless it was restored"),
)

rollup_days = Table(
    "rollup_days",
    metadata,
    Column("rollup", Text, primary_key=True),
    Column("date", Date, primary_key=True),
    Column(
        "status",
        Text,
        nullable=False,
        comment="built; pending: logs seen, never built; stale: rebuild me; kept: a rebuild refused, its logs are "
        "gone; overflow: a counter would not fit its column",
    ),
    Column("timezone", Text, comment="the zone its statistics were built in"),
    Column("method", Text, comment="how it was built: rebuild, or refresh for a day that began in one"),
    Column("built_at", DateTime(timezone=True)),
    Column("built_by", Text, comment="the application_name that built it"),
    Column("refreshed_at", DateTime(timezone=True), comment="when rows were last added to it"),
    Column("verified_at", DateTime(timezone=True), comment="when it was last compared with the logs"),
    Column("verified_seconds", Float, comment="how long that took"),
    Column("difference", BigInteger, comment="what was found: zero, or a bug"),
    Column("sealed_at", DateTime(timezone=True), comment="when its logs were first deleted"),
    Column("sealed_by", Text, comment="prune, or found: a rebuild found logs deleted by somebody else"),
    Column("missing", JSONB, comment="per measure, what its statistics hold and its logs no longer do"),
)
