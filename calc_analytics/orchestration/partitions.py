"""The daily partitions: from ROLLUP_START_DATE to today, in the reporting time zone. Today is included."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from itertools import pairwise

from dagster import DailyPartitionsDefinition, PartitionsDefinition

from calc_analytics.config import Settings
from calc_analytics.days import ONE_DAY, parse_day


def daily_partitions(settings: Settings) -> DailyPartitionsDefinition:
    """One partition per day; `end_offset=1` includes today, which has not ended."""
    return DailyPartitionsDefinition(
        start_date=settings.start_date.isoformat(), timezone=settings.timezone, end_offset=1
    )


def as_days(partition_keys: Sequence[str]) -> list[date]:
    """The days that these partition keys name."""
    return [parse_day(key) for key in partition_keys]


def keys_of(days: Iterable[date], partitions: PartitionsDefinition) -> list[str]:
    """The partition keys of those of these days that have a partition, in order."""
    existing = set(partitions.get_partition_keys())
    return [key for key in (day.isoformat() for day in sorted(days)) if key in existing]


def consecutive(days: Sequence[date]) -> Iterator[list[date]]:
    """These days, in order, cut where one is missing."""
    span = list(days[:1])
    for before, day in pairwise(days):
        if day - before != ONE_DAY:
            yield span
            span = []
        span.append(day)
    if span:
        yield span
