"""The runs that a sensor tick requests: rebuilds of waiting days, and checks of days whose verdict changed.

As few runs as possible: consecutive days of the same rollups are one run over a range of partitions.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import TYPE_CHECKING

from dagster import DagsterInstance, PartitionsDefinition, RunRequest

from calc_analytics.days import parse_day, today_and_yesterday
from calc_analytics.orchestration.assets import DAYS_PER_RUN, automatic_range
from calc_analytics.orchestration.checks import check_keys, match_key
from calc_analytics.orchestration.cursor import CheckRequest, Cursor
from calc_analytics.orchestration.evaluations import PartitionResult, results_of_partitions
from calc_analytics.orchestration.names import SUMMARY
from calc_analytics.orchestration.partitions import as_days, consecutive, keys_of
from calc_analytics.rollups import STATS

if TYPE_CHECKING:
    from calc_analytics.rollup.database import Database

# A requested run that has not done its work by then is requested again.
# Each further request of a rebuild waits twice as long, up to an hour: a day may be refused until a person acts.
REQUEST_AGAIN_SECONDS, LONGEST_WAIT_SECONDS = 300, 3600
RUNS_PER_TICK = 10


def request_rebuilds(
    db: "Database", before: Cursor | None, partitions: PartitionsDefinition
) -> tuple[list[RunRequest], Cursor]:
    """Runs for the days that wait for a rebuild, and were not requested for a while (`_wait`); newest days first.

    At a first start also for today and yesterday.
    """
    from calc_analytics.rollup import ledger

    wanted = ledger.days_by_status(db, ledger.WAITING)
    if before is None:
        wanted.update(dict.fromkeys(today_and_yesterday(db.timezone), db.log.names))
    cursor, now = before or Cursor(), time.time()
    keys = keys_of(wanted, partitions)
    times = cursor.rebuild_requests
    known = {key: at for key, at in cursor.rebuild_requested_at.items() if key in keys}
    recent = {key for key, at in known.items() if now - at < _wait(times.get(key, 1))}
    rollups = {day: tuple(wanted[day]) for day in as_days(keys) if str(day) not in recent}
    spans = _spans(rollups)[-RUNS_PER_TICK:]
    requested = {key: now for span, _ in spans for key in span}
    requests = [automatic_range(span, names) for span, names in spans[:-1]]
    # The summary is of all days: the run of the newest computes it.
    summary = [SUMMARY] if STATS.name in db.log.names else []
    requests += [automatic_range(span, [*names, *summary]) for span, names in spans[-1:]]
    requested_at = {**known, **requested}
    counts = {key: times.get(key, 0) + (key in requested) for key in requested_at}
    return requests, replace(cursor, rebuild_requested_at=requested_at, rebuild_requests=counts)


def _wait(requests: int) -> float:
    """Seconds from the last of so many requests of a day's rebuild to the next."""
    return min(REQUEST_AGAIN_SECONDS * 2.0 ** min(requests - 1, 10), LONGEST_WAIT_SECONDS)


def _spans(rollups: dict[date, tuple[str, ...]]) -> list[tuple[list[str], tuple[str, ...]]]:
    """As few runs as possible: consecutive days of the same rollups, as partition keys, oldest first."""
    found: list[tuple[list[str], tuple[str, ...]]] = []
    for names in sorted(set(rollups.values())):
        for span in consecutive(sorted(day for day, each in rollups.items() if each == names)):
            keys = [str(day) for day in span]
            found += [(keys[n : n + DAYS_PER_RUN], names) for n in range(0, len(keys), DAYS_PER_RUN)]
    return sorted(found)


def _is_recent(at: float, now: float) -> bool:
    return now - at < REQUEST_AGAIN_SECONDS


@dataclass(frozen=True)
class _Change:
    """A day whose verdict is not what its checks last reported: the rollups concerned, and those that differ now."""

    key: str
    rollups: tuple[str, ...]
    differs: frozenset[str]
    last: dict[str, PartitionResult]
    """The last evaluation of the check of each of these rollups."""

    @property
    def last_event(self) -> int:
        """The last event of these checks."""
        return max((each.event for each in self.last.values()), default=0)

    def request(self, at: float) -> CheckRequest:
        """What the cursor keeps of a request for it."""
        return CheckRequest(at, self.last_event, list(self.rollups), sorted(self.differs))

    def is_reported(self, request: CheckRequest | None) -> bool:
        """Whether the checks have reported the verdict by now, or were evaluated since that was requested."""
        return all(self._is_reported(name, self.last.get(name), request) for name in self.rollups)

    def _is_reported(self, name: str, last: PartitionResult | None, request: CheckRequest | None) -> bool:
        if last is None or not last.is_ended:
            return False
        if request is not None and last.event > request.after_event:
            return True
        return not last.passed and last.is_current if name in self.differs else last.passed


def request_checks(
    instance: DagsterInstance,
    db: "Database",
    differing: dict[str, list[str]],
    cursor: Cursor,
    partitions: PartitionsDefinition,
) -> tuple[list[RunRequest], Cursor]:
    """Runs of checks for days that differ, or no longer do, where the checks last reported something else."""
    now, changes = time.time(), _changes(instance, db, differing, cursor, partitions)
    # A request from before the verdict changed once more is out of date.
    requested = {
        key: each
        for key, each in cursor.checks_requested.items()
        if sorted(each.differs) == sorted(differing.get(key, []))
    }
    open_ = {change.key: change for change in changes if not change.is_reported(requested.get(change.key))}
    recent = {key: each for key, each in requested.items() if key in open_ and _is_recent(each.at, now)}
    spans = _spans({parse_day(key): each.rollups for key, each in open_.items() if key not in recent})[-RUNS_PER_TICK:]
    new = {key: open_[key].request(now) for span, _ in spans for key in span}
    different = {key: names for key, names in differing.items() if key not in open_}
    different.update({key: names for key, names in cursor.different.items() if key in open_})
    requests = [_check_range(db, span, names) for span, names in spans]
    return requests, replace(cursor, different=different, checks_requested={**recent, **new})


def _changes(
    instance: DagsterInstance,
    db: "Database",
    differing: dict[str, list[str]],
    cursor: Cursor,
    partitions: PartitionsDefinition,
) -> list[_Change]:
    """The days whose verdict is not what their checks last reported by the cursor, or whose checks were requested and
    may have reported either; days without a partition are left out."""
    changed = {
        day: {*differing.get(day, [])} ^ {*cursor.different.get(day, [])} for day in {*differing, *cursor.different}
    }
    for day, request in cursor.checks_requested.items():
        changed.setdefault(day, set()).update(request.rollups)
    keys = keys_of(as_days([day for day, rollups in changed.items() if rollups]), partitions)
    results = results_of_partitions(instance, [match_key(each) for each in db.log.rollups], keys)
    return [
        _Change(
            key=key,
            rollups=tuple(name for name in db.log.names if name in changed[key]),
            differs=frozenset(differing.get(key, [])),
            last={
                name: results[match_key(db.log.rollup(name)), key]
                for name in db.log.names
                if name in changed[key] and (match_key(db.log.rollup(name)), key) in results
            },
        )
        for key in keys
    ]


def _check_range(db: "Database", keys: Sequence[str], rollups: Sequence[str]) -> RunRequest:
    """One run of the checks of these rollups for consecutive partitions, without a rebuild."""
    rebuild = automatic_range(keys, [])
    return RunRequest(
        partition_key=rebuild.partition_key,
        tags=dict(rebuild.tags),
        asset_selection=[],
        asset_check_keys=check_keys(db.log, rollups),
    )
