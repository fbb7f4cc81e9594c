"""The schedule's cron line: the longest time between two ticks, and when statistics count as stale."""

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from itertools import pairwise

from dagster import DagsterInvalidDefinitionError, FreshnessPolicy, TimeWindowPartitionsDefinition

from calc_analytics.config import InvalidSetting

# A Friday, so that a line for working days shows its weekend early. No clock: loading must not depend on it.
FROM = datetime(2026, 1, 2, tzinfo=timezone.utc)
# A week and the weekend after it; doubled until there are enough ticks.
FIRST_SPAN = timedelta(days=9)
ENOUGH_TICKS = 14
LONGEST_SPAN = timedelta(days=100_000)
FORMAT = "%Y-%m-%d %H:%M"


def freshness_policy(cron: str) -> FreshnessPolicy:
    """Stale: no rollup, neither a run nor a streamed batch, in twice the longest pause of the cron line.

    Dagster's daemon evaluates it every 30 seconds (`freshness` in dagster.yaml); the UI shows it on the asset.
    """
    return FreshnessPolicy.time_window(fail_window=2 * longest_pause(cron))


@lru_cache
def longest_pause(cron: str) -> timedelta:
    """The longest time between two ticks, nights and weekends included: an hour for '0 * * * *'.

    Dagster's time windows follow the same cron lines as its schedules. Raises `InvalidSetting` for a line that is not
    one, or whose time never comes.
    """
    try:
        at = [datetime.strptime(key, FORMAT) for key in _ticks(cron)]
    except (DagsterInvalidDefinitionError, ValueError):
        raise InvalidSetting(f"ROLLUP_CRON: '{cron}' is not a cron line such as '0 * * * *'") from None
    return max(later - earlier for earlier, later in pairwise(at))


def _ticks(cron: str) -> Sequence[str]:
    """At least ENOUGH_TICKS of the line; `ValueError` if they never come."""
    ticks = TimeWindowPartitionsDefinition(start=FROM, fmt=FORMAT, cron_schedule=cron)
    span, keys = FIRST_SPAN, ticks.get_partition_keys(current_time=FROM + FIRST_SPAN)
    while len(keys) < ENOUGH_TICKS:
        if span > LONGEST_SPAN:
            raise ValueError(cron)
        span *= 2
        keys = ticks.get_partition_keys(current_time=FROM + span)
    return keys
