"""The schedule's cron line: whether it is one, how far apart its ticks are, and when statistics count as stale."""

from datetime import datetime, timedelta, timezone

from dagster import FreshnessPolicy
from dagster._utils.schedules import cron_string_iterator, is_valid_cron_schedule

from calc_analytics.config import InvalidSetting

# A Friday, so that a line for working days shows its weekend early. No clock: loading must not depend on it.
FROM = datetime(2026, 1, 2, tzinfo=timezone.utc)
AT_LEAST = timedelta(days=9)
TICKS_AT_LEAST, TICKS_AT_MOST = 12, 3_000


def freshness_policy(cron: str) -> FreshnessPolicy:
    """Stale: no rollup, neither a run nor a streamed batch, in twice the longest pause of the cron line.

    Dagster's daemon evaluates it every 30 seconds (`freshness` in dagster.yaml); the UI shows it on the asset.
    """
    return FreshnessPolicy.time_window(fail_window=2 * longest_pause(cron))


def longest_pause(cron: str) -> timedelta:
    """The longest time between two ticks, nights and weekends included: an hour for '0 * * * *'.

    Raises `InvalidSetting` for a line that is none, or that never comes.
    """
    if not is_valid_cron_schedule(cron):
        raise InvalidSetting(f"ROLLUP_CRON: '{cron}' is not a cron line such as '0 * * * *'")
    ticks = cron_string_iterator(FROM.timestamp(), cron, "UTC")
    last, longest = next(ticks), timedelta(0)
    for n in range(TICKS_AT_MOST):
        tick = next(ticks)
        longest, last = max(longest, tick - last), tick
        if n >= TICKS_AT_LEAST and last - FROM > AT_LEAST:
            break
    return longest
