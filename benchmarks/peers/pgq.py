"""PgQ: a queue in the database. A row trigger of the extension writes an event per log row, a consumer counts them."""

from benchmarks.peers.peer import CountedAtInstall
from benchmarks.peers.rows import upsert

QUEUE, CONSUMER = "log", "statistics"
# Batches end at ticks. The daemon `pgqd` ticks once a second; here each refresh asks for a tick first.
CAPTURE = f"""
    create extension pgq;
    select pgq.create_queue('{QUEUE}');
    select pgq.set_queue_config('{QUEUE}', 'ticker_max_lag', '0');
    select pgq.set_queue_config('{QUEUE}', 'ticker_idle_period', '0');
    select pgq.register_consumer('{QUEUE}', '{CONSUMER}');
    create trigger log_rows after insert on calculation_logs
        for each row execute function pgq.jsontriga('{QUEUE}', 'ignore=locality_id,date_calculated,zman_count');
"""
EVENTS = """
    select (data->>'publisher_id')::int, ((data->>'created_at')::timestamptz at time zone 'UTC')::date,
           count(*), count(*) filter (where (data->>'cache_hit')::boolean),
           coalesce(sum((data->>'response_time_ms')::int), 0),
           count(*) filter (where (data->>'source')::int = 1), count(*) filter (where (data->>'source')::int = 2),
           count(*) filter (where (data->>'source')::int = 3)
    from (select ev_data::jsonb as data from pgq.get_batch_events(%s) offset 0) events
    group by 1, 2
"""


class PgQ(CountedAtInstall):
    """A refresh: a tick, then all batches up to it, each with its end in one transaction."""

    key, name, package = "pgq", "PgQ", "Debian: postgresql-15-pgq3"
    extension, adds_to_log = "pgq", True

    def add_capture(self) -> None:
        """The queue, its consumer, its trigger."""
        self.connection.execute(CAPTURE.encode())
        self.connection.execute("select pgq.ticker(%s)", [QUEUE])

    def refresh(self) -> None:
        """Counts all events that were committed before the call."""
        self.connection.execute("select pgq.ticker(%s)", [QUEUE], prepare=True)
        while self._count_batch():
            pass

    def _count_batch(self) -> bool:
        """Whether there was a batch."""
        with self.connection.transaction():
            found = self.connection.execute("select pgq.next_batch(%s, %s)", [QUEUE, CONSUMER], prepare=True).fetchone()
            batch = found[0] if found else None
            if batch is not None:
                self.connection.execute(upsert(EVENTS).encode(), [batch], prepare=True)
                self.connection.execute("select pgq.finish_batch(%s)", [batch], prepare=True)
            return batch is not None
