"""What is recorded where the log and the ledger differ: deletions that were announced or decided, and frozen days."""

from datetime import date
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.ledger.counting import PROVEN_AFRESH
from calc_analytics.rollup.ledger.entries import checksum_sql, to_json


def record_kept(
    connection: Connection, rollup: Rollup, day: date, deleted: dict[str, int], by: str, is_intact: bool
) -> None:
    """The difference between `counted` and the log is a deletion, according to `by`: the statistics stay, built.

    The day gets a checksum if it has none, unless its statistics are not what was counted (not `is_intact`).
    """
    parameters = {"rollup": rollup.name, "day": day, "deleted": to_json(deleted), "by": by, "intact": is_intact}
    connection.execute(text(_KEPT.format(hash=checksum_sql(rollup, ":day"))), parameters)


def record_accepted(connection: Connection, rollup: Rollup, day: date, counted: dict[str, int], deleted: Any) -> None:
    """A person accepts the statistics as they are in the target now: these are the day's totals."""
    parameters = {"rollup": rollup.name, "day": day, "counted": to_json(counted), "deleted": to_json(deleted)}
    connection.execute(text(_ACCEPTED.format(hash=checksum_sql(rollup, ":day"))), parameters)


def freeze(connection: Connection, db: Database, rollup: Rollup, day: date, counted: dict[str, int]) -> None:
    """The day's log rows are gone and it was never counted whole here: its statistics stay as they are, audited."""
    parameters = {"rollup": rollup.name, "day": day, "tz": db.timezone, "counted": to_json(counted)}
    connection.execute(text(_FREEZE.format(hash=checksum_sql(rollup, ":day"))), parameters)


def freeze_if_pruned(connection: Connection, rollup: Rollup, day: date) -> None:
    """For a rollup that is not kept: how much of the day is deleted is no longer known, so it is frozen."""
    connection.execute(_FREEZE_IF_PRUNED, {"rollup": rollup.name, "day": day})


_KEPT = f"""
    update rollup_days set status = 'built', deleted = cast(:deleted as jsonb),
        checksum = coalesce(checksum, case when :intact then {{hash}} end),
        pruned_at = coalesce(pruned_at, clock_timestamp()), pruned_by = :by, {PROVEN_AFRESH}
    where rollup = :rollup and date = :day
"""
_ACCEPTED = f"""
    update rollup_days set status = 'built', counted = cast(:counted as jsonb), deleted = cast(:deleted as jsonb),
        checksum = {{hash}}, pruned_at = coalesce(pruned_at, clock_timestamp()), pruned_by = 'keep', {PROVEN_AFRESH}
    where rollup = :rollup and date = :day
"""
_FREEZE = """
    insert into rollup_days as r (rollup, date, status, timezone, counted, checksum)
    values (:rollup, :day, 'frozen', :tz, cast(:counted as jsonb), {hash})
    on conflict (rollup, date) do update
    set status = excluded.status, counted = coalesce(r.counted, excluded.counted), deleted = null,
        checksum = coalesce(r.checksum, excluded.checksum)
"""
_FREEZE_IF_PRUNED = text(
    """
    update rollup_days set status = 'frozen', deleted = null
    where rollup = :rollup and date = :day and counted is not null
      and exists (select from jsonb_each_text(deleted) where cast(value as numeric) <> 0)
    """
)
