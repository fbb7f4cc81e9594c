"""The follower: how often it refreshes and looks for rows, and that upkeep of the index never delays it."""

import itertools
import threading
import time
from types import SimpleNamespace

import pytest
from sqlalchemy import text
from sqlalchemy.engine import Engine

from calc_analytics.rollup import follow
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.follow import BUSY_SHARE, QUIET_POLL_SECONDS, QUIET_SECONDS, Follower
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.reports import DayCount, RefreshReport
from calc_analytics.rollup.snapshot import Snapshot
from calc_analytics_tests.logs import assert_exact, row, stored, utc, write

DEBOUNCE = 0.2
NOON = utc(2026, 3, 1, 12)
DAY = NOON.date()


class Clock:
    """Time that passes when the follower waits or works, and plays the event that ends the follower after a while."""

    def __init__(self, seconds: float) -> None:
        self.now, self.end = 1_000.0, 1_000.0 + seconds

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return self.is_set()

    def is_set(self) -> bool:
        return self.now >= self.end


@pytest.fixture
def timed(db: Database, monkeypatch: pytest.MonkeyPatch):
    """Runs a follower on a clock of its own. Looks find rows as `is_new` says, refreshes take `seconds`; returns the
    instants of looks and of refreshes."""

    def run(seconds_in_all: float, is_new, seconds: float = 0.005) -> tuple[list[float], list[float]]:
        clock, looks, refreshes = Clock(seconds_in_all), [], []

        def look(*_) -> tuple[bool, Snapshot]:
            looks.append(clock.now)
            return is_new(clock.now - 1_000.0), Snapshot.parse("7:7:")

        def count(db: Database, *, progress, **_) -> RefreshReport:
            refreshes.append(clock.now)
            clock.now += seconds
            counted = [DayCount("calculation_stats_daily", DAY, 1, {}, 1, "built")]
            report = RefreshReport(counted, seconds, Snapshot.parse("7:7:"))
            progress(report)
            return report

        monkeypatch.setattr(follow, "time", SimpleNamespace(monotonic=clock.monotonic))
        monkeypatch.setattr(follow, "look_for_rows", look)
        monkeypatch.setattr(follow, "refresh", count)
        monkeypatch.setattr(follow.IndexKeeper, "counted", lambda self, rows: None)
        follower = Follower(db, DEBOUNCE, clock)  # type: ignore[arg-type]
        follower._until = clock.end
        follower._refresh_when_new()
        return looks, refreshes

    return run


def gaps(instants: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(instants)]


def test_quick_refreshes_are_the_debounce_apart(timed):
    _, refreshes = timed(30, is_new=lambda now: True, seconds=0.005)
    assert len(refreshes) > 100
    assert gaps(refreshes) == pytest.approx([DEBOUNCE] * (len(refreshes) - 1))


def test_slow_refreshes_are_further_apart_so_that_they_take_a_twentieth_of_the_time(timed):
    _, refreshes = timed(600, is_new=lambda now: True, seconds=0.5)
    assert len(refreshes) > 10
    assert min(gaps(refreshes)) >= 0.5 / BUSY_SHARE - 1e-6
    assert len(refreshes) * 0.5 <= 600 * BUSY_SHARE + 0.5


def test_looks_are_frequent_until_nothing_has_come_for_a_minute_and_again_from_the_next_row_on(timed):
    late_looks: list[float] = []

    def is_first_after_200_seconds(now: float) -> bool:
        late_looks.extend([now] if now >= 200 else [])
        return late_looks == [now]

    looks, (refreshed,) = timed(300, is_first_after_200_seconds)
    assert refreshed >= 1_200
    before, after = [at for at in looks if at < refreshed], [at for at in looks if at > refreshed]
    for part in (before, after):
        begin = part[0]
        early = [gap for at, gap in zip(part, gaps(part), strict=False) if at - begin < QUIET_SECONDS - 1]
        late = [gap for at, gap in zip(part, gaps(part), strict=False) if at - begin > QUIET_SECONDS + 1]
        assert early
        assert late
        assert max(early) <= follow.POLL_SECONDS[1]
        assert min(late) >= QUIET_POLL_SECONDS - 1e-6


@pytest.fixture
def following(db: Database):
    """Starts a follower, and ends it after the test."""
    stopping, threads = threading.Event(), []

    def start() -> Follower:
        rebuild(db, [DAY])
        follower = Follower(db, 0.05, stopping)
        follower.follow(0, 600)
        threads.append(follower._thread)
        return follower

    yield start
    stopping.set()
    for thread in threads:
        thread.join()
    for thread in threading.enumerate():
        if thread.name == "index-keeper":
            thread.join()


def await_count(db: Database, rows: int) -> None:
    deadline = time.monotonic() + 60
    while sum(sums[0] for sums in stored(db).values()) < rows:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.long
def test_a_table_that_vacuum_holds_delays_no_refresh(
    db: Database, owner: Engine, connect, following, monkeypatch: pytest.MonkeyPatch
):
    """Each refresh wants to bring the index up to date, and every attempt is refused after a second."""
    monkeypatch.setattr(follow, "SUMMARIZE_ROWS", 1)
    attempts: list[threading.Thread] = []
    summarize = follow.summarize

    def noted(engine: Engine) -> bool:
        attempts.append(threading.current_thread())
        done = summarize(engine)
        assert not done, "the table is held"
        return done

    monkeypatch.setattr(follow, "summarize", noted)
    following()
    writer = connect()
    with owner.begin() as holder:
        holder.execute(text("lock table calculation_logs in share update exclusive mode"))
        for n in range(1, 11):
            write(writer, [row(NOON)])
            await_count(db, n)
            assert_exact(db)
        keepers = [thread for thread in threading.enumerate() if thread.name == "index-keeper"]
        for keeper in keepers:
            keeper.join()
    assert {thread.name for thread in attempts} == {"index-keeper"}


def test_the_statistics_go_on_while_an_attempt_to_summarize_hangs(
    db: Database, connect, following, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(follow, "SUMMARIZE_ROWS", 1)
    began, go_on, attempts = threading.Event(), threading.Event(), []

    def hang(db: Database) -> bool:
        attempts.append(1)
        began.set()
        go_on.wait()
        return True

    monkeypatch.setattr(follow, "summarize", hang)
    following()
    writer = connect()
    try:
        for n in range(1, 6):
            write(writer, [row(NOON)])
            await_count(db, n)
            assert began.wait(60)
        assert len(attempts) == 1, "one attempt at a time"
    finally:
        go_on.set()
    assert_exact(db)
