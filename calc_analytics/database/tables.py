"""The tables, as SQLAlchemy Core: the API's two, the other rollups' targets, the summary, and the state.

`calculation_logs` belongs to the API: the project adds `xact_id` and an index to it, nothing else.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Double,
    Float,
    Index,
    Integer,
    MetaData,
    Numeric,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.types import UserDefinedType

metadata = MetaData()


class PgSnapshot(UserDefinedType[str]):
    """PostgreSQL's `pg_snapshot`, read and written as text ('xmin:xmax:xip,…')."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """The type's name in DDL."""
        return "pg_snapshot"


def _count(name: str, type_: type[Integer] | type[BigInteger] = Integer, comment: str | None = None) -> Column[int]:
    return Column(name, type_, nullable=False, server_default=text("0"), comment=comment)


def _publisher_and_date() -> tuple[Column[Any], ...]:
    return (
        Column("publisher_id", Integer, primary_key=True, autoincrement=False, comment="whose zmanim were calculated"),
        Column("date", Date, primary_key=True, comment="day of created_at in the reporting time zone"),
    )


def _totals() -> tuple[Column[int], ...]:
    return (
        _count("total_calculations", comment="calculations: log rows"),
        _count("cache_hits", comment="calculations that were answered from the cache"),
        _count("total_response_time_ms", BigInteger, "sum of the response times in milliseconds; null counts as 0"),
    )


def _sources() -> tuple[Column[int], ...]:
    return (
        _count("source_web", comment="calculations of source 1: web UI"),
        _count("source_api", comment="calculations of source 2: authenticated API"),
        _count("source_external", comment="calculations of source 3: external API (machine to machine)"),
    )


calculation_logs = Table(
    "calculation_logs",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("publisher_id", Integer, nullable=False, comment="whose zmanim were calculated"),
    Column("locality_id", BigInteger, nullable=False, comment="the place that was asked about"),
    Column("date_calculated", Date, nullable=False, comment="the date that was asked about, past or future"),
    Column(
        "cache_hit", Boolean, nullable=False, server_default=text("false"), comment="whether the cache had the answer"
    ),
    Column("response_time_ms", SmallInteger, comment="milliseconds, 0 to 32767; null: not measured"),
    Column("zman_count", SmallInteger, comment="times of day that were calculated"),
    Column(
        "source",
        SmallInteger,
        nullable=False,
        comment="1: web UI; 2: authenticated API; 3: external API (machine to machine); anything else is unknown",
    ),
    Column(
        "created_at",
        DateTime(timezone=True),
        nullable=False,
        server_default=text("now()"),
        comment="when it was asked, by the clock of the API server",
    ),
    comment="One row per calculation, written by the API in batches.",
)

calculation_stats_daily = Table(
    "calculation_stats_daily",
    metadata,
    *_publisher_and_date(),
    *_totals(),
    *_sources(),
    comment="Calculations per publisher and day.",
)

calculation_locality_stats_daily = Table(
    "calculation_locality_stats_daily",
    metadata,
    *_publisher_and_date(),
    Column("locality_id", BigInteger, primary_key=True, autoincrement=False, comment="the place that was asked about"),
    *_totals(),
    comment="Calculations per publisher, locality and day.",
    postgresql_with={"fillfactor": 70},
)

calculation_stats_hourly = Table(
    "calculation_stats_hourly",
    metadata,
    *_publisher_and_date(),
    Column("hour", DateTime(timezone=True), primary_key=True, comment="start of the UTC hour"),
    *_totals(),
    *_sources(),
    comment="Calculations per publisher and UTC hour.",
    postgresql_with={"fillfactor": 70},
)

calculation_latency_daily = Table(
    "calculation_latency_daily",
    metadata,
    *_publisher_and_date(),
    Column(
        "source",
        SmallInteger,
        primary_key=True,
        autoincrement=False,
        comment="1: web UI; 2: authenticated API; 3: external API (machine to machine); anything else is unknown",
    ),
    Column(
        "response_time_ms",
        Integer,
        primary_key=True,
        autoincrement=False,
        comment="rounded down to 7 significant bits, exact below 128; -1: null or negative",
    ),
    _count("calculations", comment="calculations: log rows"),
    # Averages are over rows with a response time: without reading the rest of the histogram.
    Index(
        "calculation_latency_daily_unmeasured", "publisher_id", "date", postgresql_where=text("response_time_ms = -1")
    ),
    comment="Calculations per publisher, source and response time: a histogram, exact below 128 ms.",
    postgresql_with={"fillfactor": 70},
)

publisher_usage_summary = Table(
    "publisher_usage_summary",
    metadata,
    Column("publisher_id", BigInteger, primary_key=True, autoincrement=False, comment="whose calculations"),
    Column("rank", BigInteger, nullable=False, comment="1: most calculations in the last 30 days"),
    _count("today", BigInteger, "calculations of today, in the reporting time zone"),
    _count("this_month", BigInteger, "calculations since the first of this month"),
    _count("last_month", BigInteger, "calculations of the calendar month before"),
    _count(
        "last_month_to_date",
        BigInteger,
        "calculations of the first days of the month before: as many whole days as this month has had",
    ),
    Column(
        "month_change",
        Double,
        comment="this month up to yesterday, at most as many days as the month before has, per last_month_to_date, "
        "less 1; null: there were none, or today is the first",
    ),
    _count("last_30_days", BigInteger, "calculations of the last 30 days, today included"),
    _count("all_time", BigInteger, "all calculations, also those whose log rows were pruned"),
    _count("source_web", BigInteger, "calculations of source 1: web UI, of all time"),
    _count("source_api", BigInteger, "calculations of source 2: authenticated API, of all time"),
    _count("source_external", BigInteger, "calculations of source 3: external API (machine to machine), of all time"),
    Column("cache_hit_ratio", Double, comment="cache hits per calculation over all time, 0 to 1"),
    Column(
        "average_response_time_ms",
        Double,
        comment="milliseconds, over all rows with a response time, of days that calculation_latency_daily holds built; "
        "null: there is none",
    ),
    Column("p50_response_time_ms", Double, comment="milliseconds, over the last 30 days; null: no response time"),
    Column("p95_response_time_ms", Double, comment="milliseconds, over the last 30 days; null: no response time"),
    Column("localities", BigInteger, comment="localities of the last 30 days; null: they are not counted"),
    Column("top_locality_id", BigInteger, comment="the locality with most calculations in the last 30 days"),
    Column("top_locality_share", Double, comment="its part of the calculations of the last 30 days, 0 to 1"),
    Column("first_date", Date, nullable=False, comment="first day with a calculation"),
    Column("last_date", Date, nullable=False, comment="last day with a calculation"),
    Column("counted_at", DateTime(timezone=True), comment="log rows that were committed by then are counted"),
    Column(
        "complete",
        Boolean,
        nullable=False,
        comment="whether every day that has log rows is built; in calculation_latency_daily and "
        "calculation_locality_stats_daily those of the last 30 days",
    ),
    comment="calc_analytics: calculations of each publisher, as of counted_at; replaced by the asset of this name",
)

rollup_state = Table(
    "rollup_state",
    metadata,
    Column("log", Text, primary_key=True, comment="the log table's name"),
    Column("timezone", Text, nullable=False, comment="the reporting time zone in which all days are built"),
    Column(
        "system_identifier",
        BigInteger,
        nullable=False,
        comment="the cluster that issued the transaction ids; 0: another than this one",
    ),
    Column("snapshot", PgSnapshot, nullable=False, comment="log rows visible in it are counted, in every built day"),
    Column("refreshed_at", DateTime(timezone=True), comment="when the snapshot was last moved"),
    Column("relation", BigInteger, comment="this table's oid when the row was written"),
    Column("written_by", BigInteger, comment="the transaction that wrote the row: its xmin, unless it was restored"),
    Column("log_relation", BigInteger, comment="the oid of the log table whose rows are counted"),
    Column("rollups", ARRAY(Text), nullable=False, comment="the rollups that every refresh adds to"),
    Column("audited_at", DateTime(timezone=True), comment="when all days were last audited"),
    comment="One row per log: the snapshot up to which its rows are counted.",
    postgresql_with={"fillfactor": 50},
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
        comment="built; pending: seen but never counted whole; stale: to be rebuilt after a rebase; frozen: its log "
        "rows are gone, statistics kept; overflow: a value does not fit its column",
    ),
    Column("timezone", Text, comment="the zone in which its statistics were built"),
    Column("method", Text, comment="how it was built: rebuild, or refresh for a day that began in one"),
    Column("built_at", DateTime(timezone=True)),
    Column("built_by", Text, comment="the application_name that built it"),
    Column("refreshed_at", DateTime(timezone=True), comment="when rows were last added to it"),
    Column("counted", JSONB, comment="per measure, what was counted; null: the day was never counted whole"),
    Column("deleted", JSONB, comment="per measure, what was deleted from the log after it was counted"),
    Column("checksum", Numeric, comment="sum of the hashes of the day's rows in the target"),
    Column("pruned_at", DateTime(timezone=True), comment="when log rows of the day were first deleted"),
    Column("pruned_by", Text, comment="prune; logs_kept_days; or keep: a person decided"),
    Column("verified_at", DateTime(timezone=True), comment="when it was last compared with the log"),
    Column("verified_seconds", Float, comment="how long that took"),
    Column("difference", BigInteger, comment="what that found: zero, or the sum of all differences"),
    Column("finding", Text, comment="what kind of difference that was"),
    Column("audited_at", DateTime(timezone=True), comment="when its statistics were last compared with `counted`"),
    Column("audit_difference", BigInteger, comment="what that found: zero, or another program changed the statistics"),
    comment="The ledger: per rollup and day what was counted and deleted, and when it was built and proven.",
    postgresql_with={"fillfactor": 50},
)

rollup_journal = Table(
    "rollup_journal",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("log", Text, nullable=False),
    Column(
        "at",
        DateTime(timezone=True),
        nullable=False,
        comment="when; of refreshes the minute, later the day; of proofs the hour",
    ),
    Column("operation", Text, nullable=False, comment="refresh, rebuild, verify, audit, prune, keep, rebase, …"),
    Column("by", Text, nullable=False, comment="application_name and role"),
    Column("summed", Boolean, nullable=False, server_default=text("false"), comment="several operations in one row"),
    Column("operations", Integer, nullable=False, server_default=text("1"), comment="how many are summed up here"),
    Column("rows", BigInteger, nullable=False, server_default=text("0"), comment="log rows counted or deleted"),
    Column("seconds", Float, nullable=False, server_default=text("0"), comment="how long they took"),
    Column("failed", Boolean, nullable=False, server_default=text("false")),
    Column("days", JSONB, nullable=False, server_default=text("'{}'"), comment="what it did to which day"),
    Column("ages", JSONB, comment="of refreshed rows: histogram of the ages at which they were counted"),
    Column("oldest_seconds", Float, comment="age of the oldest row when it was counted"),
    Column("detail", Text, comment="further details, in one line"),
    Index(
        "rollup_journal_summed", "log", "operation", "failed", "at", "by", unique=True, postgresql_where=text("summed")
    ),
    comment="The journal: one row per operation, or per minute of refreshes; append-only.",
    postgresql_with={"fillfactor": 50},
)

rollup_archive = Table(
    "rollup_archive",
    metadata,
    Column("log", Text, primary_key=True),
    Column("date", Date, primary_key=True),
    _count("rows", BigInteger, "log rows in the day's files"),
    _count("missing", BigInteger, "log rows that were counted, and deleted before they were archived"),
    Column("snapshot", PgSnapshot, comment="log rows visible in it are archived; null: not known since a rebase"),
    Column("manifest", Text, comment="the manifest as published, with the names and checksums of the files"),
    Column(
        "leftovers",
        ARRAY(Text),
        nullable=False,
        server_default=text("'{}'"),
        comment="files that are not part of the archive and may exist: being written, or to be deleted",
    ),
    Column("archived_at", DateTime(timezone=True), comment="when the manifest was last published"),
    Column("archived_by", Text, comment="by which application"),
    Column(
        "erased",
        JSONB,
        nullable=False,
        server_default=text("'{}'"),
        comment="counted rows that were erased from log and statistics, and are still in the files or missing, by keys",
    ),
    Column("erased_at", DateTime(timezone=True), comment="since when there are such rows"),
    _count("difference", BigInteger, "by how many rows it differed from what was counted, when last compared"),
    comment="Per archived day: which log rows are in the Parquet archive, and in which files.",
)

# Written by assets, for reports and exports; never counted, always computed from the rollups.
READER_TABLES = (publisher_usage_summary,)
STATE_TABLES = (rollup_state, rollup_days, rollup_journal, rollup_archive)
# Where Alembic keeps which revisions have run.
VERSION_TABLE = "calc_analytics_version"
