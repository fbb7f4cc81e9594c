"""Extensions that keep aggregates incrementally: pg_incremental, pg_ivm, TimescaleDB's continuous aggregates."""

from datetime import date

from benchmarks.peers.peer import Peer
from benchmarks.peers.rows import DATE, MEASURES, TODAY, YESTERDAY, grouped, upsert
from benchmarks.peers.server import Server

# Of pg_ivm and TimescaleDB: aggregates without FILTER, which pg_ivm does not take.
SUMS = """
    count(*) as total_calculations, sum(case when cache_hit then 1 else 0 end) as cache_hits,
    sum(response_time_ms) as total_response_time_ms, sum(case when source = 1 then 1 else 0 end) as source_web,
    sum(case when source = 2 then 1 else 0 end) as source_api,
    sum(case when source = 3 then 1 else 0 end) as source_external
"""


class PgIncremental(Peer):
    """A sequence pipeline: counts the ids between the last and the newest, after all open writers have ended.

    pg_cron runs it once a minute; here each refresh executes it.
    """

    key, name = "pg_incremental", "pg_incremental"
    package = "source: CrunchyData/pg_incremental, and pg_cron"
    extension = "pg_incremental"

    @classmethod
    def version(cls, server: Server) -> str | None:
        """The extension's, which needs pg_cron."""
        return super().version(server) if "pg_cron" in server.extensions() else None

    def install(self) -> None:
        """The index that its documentation recommends is the primary key; the pipeline counts what is there."""
        super().install()
        self.connection.execute("create extension pg_incremental cascade")
        command = upsert(grouped("calculation_logs", "id between $1 and $2"))
        self.connection.execute(
            "select incremental.create_sequence_pipeline('statistics', 'calculation_logs', %s, schedule := null)",
            [command],
        )

    def refresh(self) -> None:
        """Waits for all transactions that have written to the log and are open."""
        self.connection.execute("call incremental.execute_pipeline('statistics')")


class PgIvm(Peer):
    """An incrementally maintained view: triggers change it in each writer's transaction; nothing refreshes."""

    key, name, package = "pg_ivm", "pg_ivm", "source: sraoss/pg_ivm"
    extension, adds_to_log = "pg_ivm", True
    has_refresher = False

    def install(self) -> None:
        """Its library must be loaded in each session that writes."""
        self.connection.execute(f"alter database {self.key} set session_preload_libraries = 'pg_ivm'")
        self.close()
        self.connection.execute("create extension pg_ivm")
        view = f"select publisher_id, {DATE} as date, {SUMS} from calculation_logs group by publisher_id, {DATE}"
        self.connection.execute("select pgivm.create_immv('peer_stats', %s)", [view])

    def refresh(self) -> None:
        """Nothing."""


class Timescale(Peer):
    """A continuous aggregate: recounts the buckets (here: days) that were written to since its last refresh."""

    key, name, package = "timescaledb", "TimescaleDB", "timescaledb-2-postgresql-15 of its vendor"
    extension, adds_to_log = "timescaledb", True

    def install(self) -> None:
        """The log becomes a hypertable, whose primary key must contain the time."""
        run = self.connection.execute
        run("create extension if not exists timescaledb")
        run("alter table calculation_logs drop constraint calculation_logs_pkey, add primary key (id, created_at)")
        run("select create_hypertable('calculation_logs', by_range('created_at'), migrate_data => true)")
        run(
            f"create materialized view peer_buckets with (timescaledb.continuous) as "
            f"select publisher_id, time_bucket('1 day', created_at) as bucket, {SUMS} "
            "from calculation_logs group by 1, 2 with no data"
        )
        measures = ", ".join(MEASURES)
        run(
            "create view peer_stats as "
            f"select publisher_id, (bucket at time zone 'UTC')::date as date, {measures} from peer_buckets"
        )
        run("call refresh_continuous_aggregate('peer_buckets', null, null)")

    def refresh(self) -> None:
        """What a policy with these offsets runs: today and yesterday, if they were written to."""
        self.catch_up(YESTERDAY)

    def catch_up(self, first: date) -> None:
        """The same with a wider window."""
        self.connection.execute(
            "call refresh_continuous_aggregate('peer_buckets', "
            f"timestamptz '{first} 00:00Z', timestamptz '{TODAY} 24:00Z')"
        )

    def stored_table(self) -> str:
        """The table below the view."""
        found = self.connection.execute(
            "select format('%I.%I', materialization_hypertable_schema, materialization_hypertable_name) "
            "from timescaledb_information.continuous_aggregates where view_name = 'peer_buckets'"
        ).fetchone()
        assert found is not None
        return str(found[0])
