"""A run that is canceled ends at once: what interrupts it is not taken for a lost connection, and not repeated."""

import signal
import time
from collections.abc import Callable, Iterator

import pytest
from dagster import DagsterEventType, DagsterExecutionInterruptedError, DagsterInstance, Definitions

from calc_analytics.orchestration import resources
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics_tests.integration.test_dagster_runs import run
from calc_analytics_tests.logs import assert_exact, row, utc, write

DAY = utc(2026, 3, 1).date()
OPERATIONS: dict[str, Callable[[Database], object]] = {
    "refresh": refresh,
    "rebuild": lambda db: rebuild(db, [DAY]),
}


@pytest.fixture
def interrupt_soon() -> Iterator[Callable[[], None]]:
    """Interrupts the main thread in half a second, as Dagster does when a run is terminated."""

    def interrupt(*_: object) -> None:
        raise DagsterExecutionInterruptedError

    before = signal.signal(signal.SIGALRM, interrupt)
    yield lambda: signal.setitimer(signal.ITIMER_REAL, 0.5)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_interrupts_an_operation_leaves_it_at_once(
    name: str, db: Database, connect, interrupt_soon: Callable[[], None]
):
    write(connect(), [row(utc(2026, 3, 1, 12))] * 3)
    holder = connect()
    holder.execute("begin")
    holder.execute("select from rollup_state for update")
    interrupt_soon()
    began = time.monotonic()
    with pytest.raises(DagsterExecutionInterruptedError):
        OPERATIONS[name](db)
    # Not the time limit of any statement: it would wait as long as the lock is held.
    assert time.monotonic() - began < 30
    holder.execute("rollback")
    refresh(db)
    rebuild(db, [DAY])
    assert_exact(db)


@pytest.mark.parametrize("step", range(3))
def test_a_step_that_is_interrupted_while_it_opens_the_database_is_not_repeated(
    step: int, location: Definitions, instance: DagsterInstance, db: Database
):
    """Rebuild, checks and summary each open it once; the embedded one is migrated then, and may wait for a lock."""
    opened = 0

    def open_database(*_: object) -> Database:
        nonlocal opened
        opened += 1
        if opened == step + 1:
            raise DagsterExecutionInterruptedError
        return db

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resources, "_database", open_database)
        result = run(location, instance, DAY)
    kinds = [event.event_type for event in result.all_events]
    assert not result.success
    assert kinds.count(DagsterEventType.STEP_FAILURE) == 1
    assert DagsterEventType.STEP_UP_FOR_RETRY not in kinds
