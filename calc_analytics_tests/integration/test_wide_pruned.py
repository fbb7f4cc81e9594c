"""Keys beyond the declared types on pruned days: their hash has the widest type, so every operation works with them."""

from datetime import date

from sqlalchemy.engine import Engine

from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.erasure import erase
from calc_analytics.rollup.judge import Decision
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.status import different_days
from calc_analytics.rollup.verify import verify
from calc_analytics.rollup.widen import widen
from calc_analytics.rollups import LOG
from calc_analytics_tests.logs import execute, row, stored, utc, write

DAY, NEXT, WIDE = date(2026, 3, 1), date(2026, 3, 2), 5_000_000_000


def test_a_wide_key_is_pruned_kept_proven_and_erased(db: Database, owner: Engine, connect):
    mine = Database(owner, LOG, "UTC")
    write(connect(), [row(utc(2026, 3, 1, 12))] * 5)
    rebuild(db, [DAY])
    verify(db, [DAY])
    prune(mine, NEXT)
    widen(mine, "publisher_id", "bigint")
    write(connect(), [row(utc(2026, 3, 1, 13), publisher=WIDE), row(utc(2026, 3, 1, 13), publisher=WIDE + 1)])
    refresh(db)
    assert verify(db, [DAY]).difference == 0
    execute(db, f"delete from calculation_logs where publisher_id = {WIDE + 1}")
    assert verify(db, [DAY]).difference > 0
    assert not rebuild(db, [DAY], decision=Decision.KEEP).failed
    assert verify(db, [DAY]).difference == 0
    prune(mine, NEXT)
    assert verify(db, [DAY]).difference == 0
    erase(mine, {"publisher_id": WIDE})
    audit(db)
    assert (verify(db, [DAY]).difference, different_days(db)) == (0, {})
    assert {key[0] for key in stored(db)} == {1, WIDE + 1}
