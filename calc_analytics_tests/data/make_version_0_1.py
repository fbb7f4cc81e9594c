"""Makes the test data in this folder: databases as version 0.1 left them, and the statements of its refresh.

Run once, with the code of version 0.1 (commit 5240f1a) instead of today's:

    git archive 5240f1a | tar -x -C /tmp/old
    PYTHONPATH=/tmp/old python calc_analytics_tests/data/make_version_0_1.py

It works on a PostgreSQL 16 of its own, so that the dumps can be loaded into every later version. The dumps are plain
SQL without psql's commands. Log rows have no `xact_id`, so all of them are older than any snapshot; roles are called
`rollup_writer` and `stats_reader`. Tests complete them with `calc_analytics_tests/version_0_1.py`.
"""

import gzip
import re
import shutil
import tempfile
from datetime import date
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.engine import Engine

from calc_analytics.config import project_root
from calc_analytics.database.engine import engine_for, ensure_database
from calc_analytics.rollup import refresh as refreshing
from calc_analytics.rollup import state
from calc_analytics.rollup.declaration import CALCULATION_STATS_DAILY as ROLLUP
from calc_analytics.rollup.install import install
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.verify import record, verify
from calc_analytics_tests.clusters import OLDER, Cluster

HERE = Path(__file__).parent
LOGS = """
    create table calculation_logs (
        id bigserial{key}, publisher_id integer not null, city_id bigint not null,
        date_calculated date not null, cache_hit boolean not null default false, response_time_ms smallint,
        zman_count smallint, source smallint not null, created_at timestamptz not null default now(){partitioned})
"""
PARTITIONED = [
    LOGS.format(key="", partitioned=", primary key (id, created_at)) partition by range (created_at"),
    "create table logs_old partition of calculation_logs for values from (minvalue) to ('2026-03-03Z')",
    "create table logs_new partition of calculation_logs for values from ('2026-03-03Z') to (maxvalue)",
]
STATISTICS = """
    create table calculation_stats_daily (
        publisher_id integer not null, date date not null, total_calculations integer not null default 0,
        cache_hits integer not null default 0, total_response_time_ms bigint not null default 0,
        source_web integer not null default 0, source_api integer not null default 0,
        source_external integer not null default 0, primary key (publisher_id, date))
"""
# Of a predecessor: two days without log rows, and one that it counted more than once.
PREDECESSOR = """
    insert into calculation_stats_daily values
        (5, '2024-01-01', 7, 0, 0, 7, 0, 0), (5, '2024-01-02', 8, 0, 0, 8, 0, 0),
        (0, '2026-02-26', 999, 0, 0, 999, 0, 0)
"""
ROWS = """
    insert into calculation_logs
        (publisher_id, {place}, date_calculated, cache_hit, source, response_time_ms, created_at)
    select i % 3, 281184 + i % 7, '2030-01-01', i % 2 = 0, 1 + i % 4, nullif(i % 50, 0) * 9,
           timestamptz '{day} 00:30Z' + make_interval(mins => i * 23 % 1380) from generate_series(1, {rows}) i
"""
DELETED_BY_OTHERS = """
    delete from calculation_logs where created_at >= '2026-03-03Z' and created_at < '2026-03-04Z' and id % 2 = 0
"""
SOMEBODY_ADDED = """
    update calculation_stats_daily set total_calculations = total_calculations + 1000 where date = '2026-03-05'
"""
# As if rows of a wrong day had filled the counter and were deleted later.
TO_THE_BRIM = """
    update calculation_stats_daily set total_calculations = 2147483647
    where date = '2026-03-07' and publisher_id = 1
"""
BACK = """
    update calculation_stats_daily set total_calculations = 4 where date = '2026-03-07' and publisher_id = 1
"""


def days(*numbers: int) -> list[date]:
    return [date(2026, 3, number) for number in numbers]


def execute(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def write(engine: Engine, day: str, rows: int, place: str = "locality_id") -> None:
    execute(engine, ROWS.format(day=day, rows=rows, place=place))


def build(engine: Engine, wanted: list[date]) -> None:
    rebuild(engine, ROLLUP, "UTC", wanted)


def begin(engine: Engine, logs: list[str]) -> None:
    """An API's database, adopted, with the documented role and a reader of the live view."""
    execute(engine, *logs, STATISTICS, PREDECESSOR)
    for day in ("2026-02-26", "2026-02-27"):
        write(engine, day, 100, place="city_id")
    install(engine, "UTC")
    grants = (project_root() / "deploy" / "least_privilege.sql").read_text()
    execute(engine, re.sub("^ *--.*$", "", grants, flags=re.M))
    execute(engine, "grant delete on calculation_logs to rollup_writer", "create role stats_reader login")
    execute(engine, "grant select on calculation_stats_daily, calculation_stats_daily_live to stats_reader")


def live_for_a_while(engine: Engine) -> None:
    """Every status that a day can have in version 0.1."""
    build(engine, [date(2026, 2, 26)])
    for day, rows in enumerate((90, 120, 80, 60, 70, 50), start=1):
        write(engine, f"2026-03-0{day}", rows)
        refresh(engine, ROLLUP, "UTC")
    build(engine, days(2, 4))
    prune(engine, ROLLUP, "UTC", date(2026, 3, 2))
    write(engine, "2026-03-01", 3)  # after the day was pruned
    write(engine, "2024-01-02", 1)  # its older rows are gone: refused, then kept
    refresh(engine, ROLLUP, "UTC")
    build(engine, [date(2024, 1, 2)])
    execute(engine, DELETED_BY_OTHERS, SOMEBODY_ADDED)
    build(engine, days(3, 5))  # sealed as 'found', both
    write(engine, "2026-02-27", 2)  # has older rows: pending
    write(engine, "2026-03-07", 10)
    refresh(engine, ROLLUP, "UTC")
    execute(engine, TO_THE_BRIM)
    write(engine, "2026-03-07", 5)
    refresh(engine, ROLLUP, "UTC")  # overflow
    execute(engine, BACK)
    build(engine, [date(1900, 1, 1), date(2030, 1, 1)])
    record(engine, ROLLUP, verify(engine, ROLLUP, "UTC", days(1, 2, 3, 4, 5, 6)))
    execute(engine, "update calculation_logs set xact_id = null")


def dump(cluster: Cluster, database: str) -> str:
    """Plain SQL that any client can send."""
    plain = cluster.run("pg_dump", "-h", str(cluster.folder), "-U", "postgres", "--no-owner", "--inserts",
                        "--rows-per-insert=1000", database).stdout  # fmt: skip
    of_psql = ("--", "\\", "SET ", "SELECT pg_catalog.set_config")
    kept = [line for line in plain.splitlines() if line and not line.startswith(of_psql)]
    return "\n".join(kept) + "\n"


def statements() -> str:
    """What version 0.1 sends in a refresh, in its order."""
    lock = state._READ + "for no key update of s"
    sent = {
        "lock": lock,
        "snapshot": "select cast(pg_current_snapshot() as text)",
        "refresh": refreshing.refresh_sql(ROLLUP),
        "store": state._STORE.text,
    }
    return "".join(f"-- {name}\n{statement.strip()};\n" for name, statement in sent.items())


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="ca-"))
    cluster = Cluster(folder, OLDER).create().start()
    try:
        plain = [LOGS.format(key=" primary key", partitioned="")]
        for name, logs in {"version_0_1": plain, "version_0_1_partitioned": PARTITIONED}.items():
            engine = engine_for(cluster.url(name))
            ensure_database(engine.url)
            begin(engine, logs)
            live_for_a_while(engine)
            (HERE / f"{name}.sql.gz").write_bytes(gzip.compress(dump(cluster, name).encode(), mtime=0))
            execute(engine, "drop owned by rollup_writer", "drop owned by stats_reader")
            execute(engine, "drop role rollup_writer", "drop role stats_reader")
            engine.dispose()
        (HERE / "refresh_0_1.sql").write_text(statements())
    finally:
        cluster.stop("immediate")
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
