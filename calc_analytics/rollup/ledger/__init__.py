"""The ledger: what is counted, up to which snapshot. The only package that writes `rollup_state` and `rollup_days`.

`rollup_state` has one row per log (`state.py`), which every operation that changes statistics locks. It holds the
snapshot, the time zone, the rollups that take part, and where it was written.

`rollup_days` has one row per rollup and day (`entries.py`). `counted` and `deleted` hold the totals of each measure,
changed only in the transactions that change the statistics or the log. So two independent equations hold:

    sum over the target's rows of the day == counted                    (audit: reads statistics only)
    counted == aggregate(visible log rows of the day) + deleted         (verify: reads the log)

A day that may have lost log rows has a checksum over its rows as well, kept up to date by adding and subtracting, so
that a change by another program is always found. Statements of other modules may read both tables in a join.
"""

# ruff: noqa: F401

from calc_analytics.rollup.ledger.changes import (
    create_if_missing,
    forget_empty_days,
    keep_rollups,
    mark_stale,
    record_pending,
    record_predecessors_day,
    start_afresh,
)
from calc_analytics.rollup.ledger.counting import (
    count_again,
    mark,
    record_added,
    record_rebuilt,
    recorded_cte,
    seen_cte,
    set_aside,
)
from calc_analytics.rollup.ledger.decisions import freeze, freeze_if_pruned, record_accepted, record_kept
from calc_analytics.rollup.ledger.deletions import (
    deleted_cte,
    is_prunable_sql,
    keep_out_prune,
    keep_out_rebuilds,
    prunable_days,
    take_out,
)
from calc_analytics.rollup.ledger.entries import (
    COUNTED,
    ON_RECORD,
    WAITING,
    Entry,
    built_days,
    counted_days,
    days_built_by_others,
    days_by_status,
    days_on_record,
    entries,
    is_intact,
    overflowed_days,
    rollups_by_day,
    unknown_rollups,
    waiting_days,
)
from calc_analytics.rollup.ledger.proofs import (
    KNOWN_CTE,
    UNDECIDED,
    ComparedRecord,
    audit_differences,
    audited_cte,
    is_audit_due,
    oldest_proof,
    record_audit_of_all,
    record_audited,
    record_lost_days,
    record_verified,
)
from calc_analytics.rollup.ledger.state import (
    ClusterChanged,
    LogReplaced,
    NotInstalled,
    RollupsChanged,
    State,
    TimezoneChanged,
    exists,
    has_any,
    is_usable_sql,
    kept_rollups,
    lock,
    lock_sql,
    lock_unchecked,
    moved_cte,
    note_cluster,
    read,
    require_usable,
    state_columns,
    stored_timezone,
)
