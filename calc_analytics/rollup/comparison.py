"""The comparison of one day of one rollup: the statement that compares statistics, ledger and log, and its reading.

One statement sees one state of the database, so the answer is exact while writers run at full speed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy.engine import RowMapping

from calc_analytics.rollup import ledger
from calc_analytics.rollup.audit import GREATEST
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import KEYS_HASH, Rollup
from calc_analytics.rollup.reports import DayProof
from calc_analytics.rollup.snapshot import STORED_VISIBLE, stored_cte
from calc_analytics.rollup.windows import Window, of_day

# Keys that differ, named in the report.
EXAMPLES = 10
DIFFERENCE = "abs(coalesce(logs_{name}, 0) - coalesce(stored_{name}, 0))"


def verify_sql(db: Database, rollup: Rollup, span: Window) -> str:
    """The comparison of one day. The state is read inside the statement: it belongs to the same instant."""
    absent = rollup.keys_hash("coalesce(stored_{name}, 0) - coalesce(logs_{name}, 0)")
    return f"""
    with {stored_cte(db.log)},
    {_both_sides(db, rollup, span)},
    {ledger.KNOWN_CTE}
    select (select status from known) as status, (select timezone from known) as timezone,
           (select counted from known) as counted, (select deleted from known) as deleted,
           (select checksum from known) as checksum,
           (select version from known) as version, (select difference from known) as known_difference,
           (select finding from known) as known_finding,
           (select {ledger.UNDECIDED} from known) as is_undecided,
           (select written_by from known) as written_by,
           current_setting('transaction_read_only') = 'on' as is_read_only,
           (select coalesce(sum({rollup.hash_of("t")}), 0) from from_stats t) as checksum_now,
           count(*) filter (where differs) as differing_keys,
           count(*) filter (where {_has_more_logs(rollup)}) as keys_with_more_logs,
           count(*) filter (where logs_{rollup.count} > 0) as keys_with_logs,
           coalesce(sum({absent}) filter (where (select is_pruned from known)), 0) as keys_hash,
           {rollup.each_measure("coalesce(sum(logs_{name}), 0) as logs_{name}")},
           {rollup.each_measure("coalesce(sum(stored_{name}), 0) as stored_{name}")},
           {rollup.each_measure(f"coalesce(sum({DIFFERENCE}), 0) as {{name}}")},
           {_examples_sql(rollup)} as examples
           {"".join(f", coalesce(sum({s.name}), 0) as {s.name}" for s in rollup.suspects)}
    from both_sides
    """


def _has_more_logs(rollup: Rollup) -> str:
    """SQL: a key has more log rows than stored ones."""
    return f"coalesce(logs_{rollup.count} > coalesce(stored_{rollup.count}, 0), false)"


def _both_sides(db: Database, rollup: Rollup, span: Window) -> str:
    """CTEs: the measures of each key in the log and in the target, side by side, and whether they differ."""
    differs = rollup.each_measure("l.{name} is distinct from s.{name}", " or ")
    return f"""-- The day's rows that are visible in the stored snapshot.
    from_logs as (
        select {rollup.key_selects}, {rollup.measure_selects}{rollup.suspect_selects}
        from {db.log.name}
        where {of_day(db.log.event_time, span)} and {STORED_VISIBLE}
        group by {rollup.group_by}
    ),
    from_stats as (select {rollup.columns} from {rollup.name} where date = :day),
    both_sides as materialized (
        select {rollup.key_columns}, {rollup.each_measure("l.{name} as logs_{name}, s.{name} as stored_{name}")},
               {differs} as differs{"".join(f", l.{s.name}" for s in rollup.suspects)}
        from from_logs l full join from_stats s using ({rollup.key_columns})
    )"""


def _examples_sql(rollup: Rollup) -> str:
    """SQL: the keys that differ most, as JSON; of a pruned day, those that have log rows."""
    key = ", ".join(f"'{name}', {name}" for name in rollup.keys)
    return f"""(select jsonb_agg(example)
            from (
                select jsonb_build_object('key', jsonb_build_object({key}),
                           'log_rows', coalesce(logs_{rollup.count}, 0),
                           'stored_rows', coalesce(stored_{rollup.count}, 0)) || {_first_difference(rollup)} as example
                from both_sides
                where case when (select is_pruned from known) then logs_{rollup.count} > 0 else differs end
                order by (select is_pruned from known) and {_has_more_logs(rollup)} desc,
                         {DIFFERENCE.format(name=rollup.count)} desc, {rollup.key_columns}
                limit {EXAMPLES}
            ) most)"""


def _first_difference(rollup: Rollup) -> str:
    """SQL: of a key with as many log rows as stored ones, the first measure that differs, with both values."""
    whens = "".join(
        f" when coalesce(logs_{name}, 0) <> coalesce(stored_{name}, 0) then jsonb_build_object('measure', '{name}', "
        f"'log', coalesce(logs_{name}, 0), 'stored', coalesce(stored_{name}, 0))"
        for name in rollup.measure_names[1:]
    )
    other_count = f"coalesce(logs_{rollup.count}, 0) <> coalesce(stored_{rollup.count}, 0)"
    nothing = "cast('{}' as jsonb)"
    return f"case when {other_count} then {nothing}{whens} else {nothing} end"


def read_proof(rollup: Rollup, day: date, row: RowMapping, timezone: str, seconds: float) -> DayProof:
    """The result of the comparison, from its row."""
    names, count = rollup.measure_names, rollup.count
    logs, stored = ({name: int(row[f"{side}_{name}"]) for name in names} for side in ("logs", "stored"))
    counted, deleted = (_totals(row[column], names) for column in ("counted", "deleted"))
    totals = _DayTotals(count, logs, stored, counted, deleted)
    is_pruned = totals.is_pruned
    by_keys = {name: int(row[name]) for name in names}
    by_totals = {name: abs(logs[name] + (deleted or {}).get(name, 0) - stored[name]) for name in names}
    differences = by_totals if is_pruned else by_keys
    difference, finding = _compare(
        row, totals, sum(differences.values()), is_in_zone=row["timezone"] in (None, timezone)
    )
    return DayProof(
        rollup=rollup.name,
        day=day,
        status=row["status"],
        log_rows=logs[count],
        stored_rows=stored[count],
        counted_rows=(counted or {}).get(count, 0),
        deleted_rows=(deleted or {}).get(count, 0),
        differences=differences,
        difference=difference,
        finding=finding,
        differing_keys=_differing_keys(row, is_pruned),
        examples=_examples(rollup, row, is_pruned, finding) if difference and row["status"] != "frozen" else (),
        seconds=seconds,
        suspects={each.name: int(row[each.name]) for each in rollup.suspects if row[each.name]},
    )


@dataclass(frozen=True)
class _DayTotals:
    """A day's totals per measure: of its visible log rows, in the target, and in the ledger; `count` counts rows."""

    count: str
    logs: Mapping[str, int]
    stored: Mapping[str, int]
    counted: Mapping[str, int] | None
    deleted: Mapping[str, int] | None

    @property
    def is_pruned(self) -> bool:
        return bool(self.deleted and any(self.deleted.values()))


def _compare(row: RowMapping, totals: _DayTotals, by_keys: int, is_in_zone: bool) -> tuple[int, str]:
    """The difference, and the finding. Days of another reporting zone, which are frozen, are not compared with the log.

    `by_keys` is the sum of the differences over keys.
    """
    status, counted, deleted, is_pruned = row["status"], totals.counted, totals.deleted, totals.is_pruned
    difference, finding = 0, "overflow" if status == "overflow" else "waiting"
    if counted is not None:
        changed = sum(abs(totals.stored[name] - counted[name]) for name in counted)
        if row["checksum"] is not None and row["checksum"] != row["checksum_now"]:
            changed = max(changed, 1)
        unbalanced = 0
        if deleted is not None and status in ("built", "frozen") and is_in_zone:
            unbalanced = sum(abs(totals.logs[name] + deleted[name] - counted[name]) for name in counted)
        by_key = by_keys if status == "built" else 0
        too_many = int(row["keys_with_more_logs"]) if is_pruned else 0
        difference = min(max(changed, unbalanced, by_key, too_many, _exchanged(row, is_pruned)), GREATEST)
        surplus = totals.logs[totals.count] + (deleted or {}).get(totals.count, 0) - counted[totals.count]
        finding = _finding(status, changed, unbalanced, difference, surplus, is_pruned)
    if row["is_undecided"] and not difference:
        # Rows that no refresh adds could be as many as those that were missing: only a decision settles it.
        return int(row["known_difference"]), str(row["known_finding"])
    return difference, finding


def _exchanged(row: RowMapping, is_pruned: bool) -> int:
    """1 if the keys that the log lacks are not those that were deleted: rows of it were changed, or of the target."""
    deleted = (row["deleted"] or {}).get(KEYS_HASH)
    if deleted is None or not is_pruned or row["status"] != "built":
        return 0
    return int(int(row["keys_hash"]) != int(deleted))


def _examples(rollup: Rollup, row: RowMapping, is_pruned: bool, finding: str) -> tuple[dict[str, Any], ...]:
    """The keys that differ most. Of a pruned day those that have too many log rows, or else all that have log rows:
    rows that were added or changed have one of these keys now."""
    shown, too_many = row["examples"] or [], int(row["keys_with_more_logs"])
    if is_pruned:
        shown = shown[:too_many] if too_many else shown if finding in ("logs_added", "logs_changed") else []
    return tuple({**each, "key": {name: each["key"][name] for name in rollup.keys}} for each in shown)


def _differing_keys(row: RowMapping, is_pruned: bool) -> int:
    """How many keys `_examples` are of."""
    return int(row["differing_keys"] if not is_pruned else row["keys_with_more_logs"] or row["keys_with_logs"])


def _totals(value: dict[str, Any] | None, names: Sequence[str]) -> dict[str, int] | None:
    return None if value is None else {name: int(value.get(name, 0)) for name in names}


def _finding(status: str, changed: int, unbalanced: int, difference: int, surplus_rows: int, is_pruned: bool) -> str:
    """What differs; a log that is not what was counted has precedence over changed statistics."""
    if status == "overflow":
        return "overflow"
    if unbalanced:
        return "logs_changed" if surplus_rows == 0 else "logs_missing" if surplus_rows < 0 else "logs_added"
    if changed:
        return "statistics_changed"
    if difference:
        # The totals agree and keys do not: rows of the target or of the log were exchanged between keys.
        return "logs_changed" if is_pruned else "statistics_changed"
    return {"built": "equal", "frozen": "frozen"}.get(status, "waiting")
