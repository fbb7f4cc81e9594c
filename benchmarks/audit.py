"""An audit of 400 days × 200 publishers in every rollup, and the proof of a day.

python -m benchmarks.audit          # about three minutes
"""

from datetime import timedelta

from benchmarks.common import DAY, execute, median_seconds, parse_size, plain, project_database, seconds, show
from calc_analytics.days import days_between
from calc_analytics.rollup import ledger
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.refresh import refresh

DAYS, ROWS_PER_DAY, PRUNED_SHARE = 400, 5_000, 0.75


def main() -> None:
    """Prints seconds with no day pruned, and with most of them pruned, whose checksums are compared as well."""
    days = parse_size(__doc__, "--days", DAYS, "days on record")
    pruned = int(days * PRUNED_SHARE)
    with project_database() as db:
        fill_days(db, days)
        rows = [("no day pruned", *measure(db))]
        for rollup in db.log.rollups:
            execute(
                db.engine,
                f"""
                update rollup_days d set deleted = counted, pruned_at = now(), pruned_by = 'prune', checksum = (
                    select sum({rollup.hash_of("t")}) from {rollup.name} t where t.date = d.date)
                where rollup = '{rollup.name}' and date < date '{DAY}' - {days - pruned}
                """,
            )
        execute(db.engine, "vacuum analyze rollup_days")
        rows.append((f"{pruned} days pruned", *measure(db)))
    columns = ("", "days and rollups", "target rows", "audit", "today and yesterday", "plain sums of the same rows")
    show(f"Audit of {days} days × 200 publishers, {ROWS_PER_DAY:,} calculations a day", columns, rows)


def fill_days(db: Database, days: int) -> None:
    """History in one transaction per day; every publisher has calculations on every day."""
    with plain(db.engine) as connection:
        for day in days_between(DAY - timedelta(days=days - 1), DAY):
            connection.execute(
                f"""
                insert into calculation_logs (publisher_id, locality_id, date_calculated, cache_hit, response_time_ms,
                                              source, created_at)
                select 1 + case when n < 200 then n else floor(200 * random() ^ 3)::int end,
                       281184 + floor(50 * random() ^ 2)::int, '2030-01-01', random() < 0.6,
                       floor(random() ^ 3 * 400)::int, 1 + floor(random() * 3)::int,
                       timestamptz '{day} 00:00Z' + random() * interval '24 hours'
                from generate_series(0, {ROWS_PER_DAY - 1}) n
                """
            )
    refresh(db)
    for rollup in db.log.rollups:
        execute(db.engine, f"vacuum analyze {rollup.name}")


def measure(db: Database) -> tuple[str, ...]:
    """Days, rows and medians."""
    found = audit(db)
    assert not found.different
    all_days = median_seconds(lambda: seconds(lambda: audit(db)), 5)
    recent = median_seconds(lambda: seconds(lambda: audit(db, ledger.built_days(db)[-2:])), 5)
    with plain(db.engine) as connection:
        number = sum(connection.execute(f"select count(*) from {name}").fetchone()[0] for name in db.log.names)  # type: ignore[index]
        sums = [
            f"select sum(s.n) from (select date, count(*) as n, {rollup.each_measure('sum({name})')} "
            f"from {rollup.name} group by date) s"
            for rollup in db.log.rollups
        ]
        bare = median_seconds(lambda: seconds(lambda: [connection.execute(sql).fetchone() for sql in sums]), 5)
    return f"{found.days:,}", f"{number:,}", f"{all_days:.2f} s", f"{recent * 1e3:.0f} ms", f"{bare:.2f} s"


if __name__ == "__main__":
    main()
