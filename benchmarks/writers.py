"""What the log table's column and index cost its writers, per row, against the bare table.

python -m benchmarks.writers
"""

import statistics

import psycopg

from benchmarks.common import COLUMNS, cpu_seconds, parse_size, server, show
from calc_analytics.config import with_driver
from calc_analytics.database.adopt import PAGES_PER_RANGE, hour

TABLE = """
    id bigserial primary key, publisher_id integer not null, locality_id bigint not null, date_calculated date not null,
    cache_hit boolean not null default false, response_time_ms smallint, zman_count smallint, source smallint not null,
    created_at timestamptz not null default now()
"""
NUMBERED = TABLE + ", xact_id bigint default txid_current()"
OPTIONS = f"with (pages_per_range = {PAGES_PER_RANGE}, autosummarize = on)"
OURS = f"using brin (xact_id, ({hour('created_at')})) {OPTIONS}"
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "bare table": (TABLE, []),
    "**xact_id and the BRIN index** (ours)": (NUMBERED, [OURS]),
    "xact_id alone": (NUMBERED, []),
    "B-tree on xact_id": (NUMBERED, ["(xact_id)"]),
    "B-trees on xact_id and created_at": (NUMBERED, ["(xact_id)", "(created_at)"]),
    "BRIN on xact_id and created_at itself": (NUMBERED, [f"using brin (xact_id, created_at) {OPTIONS}"]),
}
BATCH_ROWS, BATCHES, ROUNDS = 100, 300, 10


def main() -> None:
    """Prints CPU and WAL per row, for a table that grows and for one that reuses space freed by retention."""
    rounds = parse_size(__doc__, "--rounds", ROUNDS, "rounds, of which the medians are taken")
    with server() as url:
        plain = with_driver(url, "psycopg").set(drivername="postgresql").render_as_string(hide_password=False)
        connection = psycopg.connect(plain, autocommit=True)
        for title, reused in (("A table that grows", False), ("A table that reuses freed space", True)):
            measured = measure(connection, reused, rounds)
            bare_cpu, bare_wal = measured["bare table"]
            rows = [
                (name, f"{cpu * 1e6:.2f} µs", f"{cpu / bare_cpu:.2f}", f"{wal:.0f} B", f"{wal / bare_wal:.2f}")
                for name, (cpu, wal) in measured.items()
            ]
            show(f"{title}: COPY of 100 rows", ("", "CPU per row", "ratio", "WAL per row", "ratio"), rows)
        connection.close()


def measure(connection: psycopg.Connection, reused: bool, rounds: int) -> dict[str, tuple[float, float]]:
    """CPU seconds and WAL bytes per row for each variant, medians over rounds in turn."""
    tables = {name: f"logs_{n}" for n, name in enumerate(VARIANTS)}
    for name, table in tables.items():
        prepare(connection, table, *VARIANTS[name], reused)
    connection.execute("checkpoint")
    for table in tables.values():
        write(connection, table, BATCHES)  # the full page images after the checkpoint
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    for _ in range(rounds):
        for name, table in tables.items():
            found[name].append(write(connection, table, BATCHES))
    return {
        name: (statistics.median(cpu for cpu, _ in pairs), statistics.median(wal for _, wal in pairs))
        for name, pairs in found.items()
    }


def prepare(connection: psycopg.Connection, table: str, columns: str, indexes: list[str], reused: bool) -> None:
    """Creates the table and, if space is to be reused, fills it, deletes nearly all, and vacuums."""
    connection.execute(f"drop table if exists {table}")
    connection.execute(f"create table {table} ({columns})")
    for index in indexes:
        connection.execute(f"create index on {table} {index}")
    if reused:
        rows = BATCH_ROWS * BATCHES * (ROUNDS + 3)
        connection.execute(
            f"insert into {table} ({COLUMNS}) select 1, 1, '2030-01-01', true, 1, 1, 1, timestamptz '2025-12-01' "
            f"from generate_series(1, {rows})"
        )
        connection.execute(f"vacuum {table}")
        connection.execute(f"delete from {table} where id < {rows - 100}")
        connection.execute(f"vacuum {table}")


def write(connection: psycopg.Connection, table: str, batches: int) -> tuple[float, float]:
    """CPU seconds and WAL bytes per row of that many batches."""
    pid = connection.info.backend_pid
    wal, cpu = position(connection), cpu_seconds(pid)
    for _ in range(batches):
        with connection.cursor().copy(f"copy {table} ({COLUMNS}) from stdin") as copy:
            copy.write(lines(connection))
    count = batches * BATCH_ROWS
    return (cpu_seconds(pid) - cpu) / count, (position(connection) - wal) / count


def position(connection: psycopg.Connection) -> int:
    """Bytes of WAL written so far."""
    found = connection.execute("select pg_current_wal_insert_lsn() - '0/0'").fetchone()
    return int(found[0]) if found else 0


_clock = [0]


def lines(connection: psycopg.Connection) -> str:
    """A batch whose `created_at` rises by a millisecond per row, as calculations are logged."""
    made = []
    for n in range(BATCH_ROWS):
        _clock[0] += 1
        seconds, milliseconds = divmod(_clock[0], 1000)
        at = f"2026-03-01 {seconds // 3600 % 24:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{milliseconds:03d}+00"
        made.append(f"{1 + n * n % 200}\t281184\t2030-01-01\t{'t' if n % 5 < 3 else 'f'}\t{n}\t30\t{1 + n % 3}\t{at}\n")
    return "".join(made)


if __name__ == "__main__":
    main()
