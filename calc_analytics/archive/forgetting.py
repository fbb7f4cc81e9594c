"""Forgets which days are archived: the archive starts anew at another place, or in another time zone.

No file is read, written or deleted. What the files hold is unknown to the project afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial

from calc_analytics.archive.place import Archive
from calc_analytics.archive.writing import NAME
from calc_analytics.database.retries import retry_transient
from calc_analytics.rollup import journal, ledger


@dataclass(frozen=True)
class Forgotten:
    """Archived days: rows in the files of each, those of which log rows were deleted, those of which rows are still to
    be erased, and those of which files are left that are no part of the archive."""

    rows: dict[date, int]
    with_deletions: list[date]
    to_be_erased: list[date]
    with_leftovers: list[date]

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "rows": sum(self.rows.values()),
            "days": {str(day): rows for day, rows in self.rows.items()},
            "days_with_deleted_log_rows": [str(day) for day in self.with_deletions],
            "days_to_be_erased": [str(day) for day in self.to_be_erased],
            "days_with_unfinished_files": [str(day) for day in self.with_leftovers],
        }


def forgettable(place: Archive, days: Sequence[date] | None = None) -> Forgotten:
    """Those of the days (None: all) that are archived, or of which files may exist."""
    return retry_transient(partial(_forget, place, days, is_plan=True))


def forget(place: Archive, days: Sequence[date] | None = None) -> Forgotten:
    """Forgets these days, and notes it in the journal; returns what was forgotten.

    The state is not needed: a copy that was restored into another cluster forgets before anything else.
    """
    return retry_transient(partial(_forget, place, days, is_plan=False))


def _forget(place: Archive, days: Sequence[date] | None, *, is_plan: bool) -> Forgotten:
    log = place.db.log
    with place.turn(is_state_needed=False) as connection:
        records = ledger.archived_days(connection, log, days)
        known = {day: each for day, each in records.items() if each.may_have_files}
        entries = ledger.entries(connection, log.rollups, list(known))
        found = Forgotten(
            {day: each.rows for day, each in known.items()},
            sorted({day for (_, day), entry in entries.items() if entry.has_deletions}),
            [day for day, each in known.items() if each.erased],
            [day for day, each in known.items() if each.leftovers],
        )
        if known and not is_plan:
            for day in known:
                ledger.forget_archived(connection, log, day)
            of_days = {day: {NAME: {"forgotten_rows": rows}} for day, rows in found.rows.items()}
            journal.note(connection, log, "forget", days=of_days, detail="the archive's files stay")
    return found
