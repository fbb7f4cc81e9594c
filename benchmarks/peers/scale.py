"""How much is measured: the whole comparison, and the short form that the tests run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Rows, rounds and seconds of each workload. Systems whose run is a process repeat less (`slow_rounds`)."""

    # Rows of today, and the sizes of the new batches.
    refreshes: tuple[tuple[int, tuple[int, ...]], ...] = (
        (200_000, (5_000,)),
        (1_000_000, (5_000, 100)),
        (5_000_000, (5_000, 100)),
    )
    rounds: int = 9
    slow_rounds: int = 3
    few_rows: int = 20_000
    copies: int = 100
    writing_rounds: int = 9
    commit_seconds: int = 3
    commit_rounds: int = 5
    # How long all works before a transaction is opened, and how long it is open.
    steady_seconds: float = 1.0
    open_seconds: float = 20.0
    backlog_rows: int = 1_000_000
    backlog_days: int = 40
    backlog_rounds: int = 3

    def largest_batch(self) -> int:
        """That of the picture."""
        return max(batch for _, batches in self.refreshes for batch in batches)


FULL = Scale()
SHORT = Scale(
    refreshes=((2_000, (100,)), (10_000, (100,))),
    rounds=3,
    slow_rounds=1,
    few_rows=2_000,
    copies=10,
    writing_rounds=3,
    commit_seconds=1,
    commit_rounds=1,
    steady_seconds=0.3,
    open_seconds=1.5,
    backlog_rows=5_000,
    backlog_days=5,
    backlog_rounds=1,
)
