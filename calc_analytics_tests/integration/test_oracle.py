"""Random logs against pandas: refresh after refresh equals rebuild equals the oracle, in several time zones."""

import random
from datetime import date, timedelta

from calc_analytics.rollup.declaration import CALCULATION_STATS_DAILY as ROLLUP
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.verify import verify
from calc_analytics_tests.logs import live, oracle, random_rows, stored, utc, write


def test_refresh_after_refresh_equals_rebuild_equals_pandas(engine, connect):
    rng, writer = random.Random(7), connect()
    days = [date(2026, 3, 1) + timedelta(days=n) for n in range(5)]
    rebuild(engine, ROLLUP, "UTC", days)
    for _ in range(20):
        write(writer, random_rows(rng, 50, utc(2026, 3, 1), utc(2026, 3, 6)))
        assert live(engine) == oracle(engine)
        refresh(engine, ROLLUP, "UTC")
        assert stored(engine) == live(engine) == oracle(engine)
    refreshed = stored(engine)
    rebuild(engine, ROLLUP, "UTC", days)
    assert stored(engine) == refreshed
    assert verify(engine, ROLLUP, "UTC", days).difference == 0
