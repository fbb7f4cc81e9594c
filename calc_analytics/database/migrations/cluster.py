"""For revisions that write to the state row, which would hide that it was brought here from another cluster.

As `SAME_CLUSTER` of `rollup/snapshot.py` was when these revisions were made; revisions do not follow later changes.
"""

_COUNTED = "cast(cast(pg_snapshot_xmax(s.snapshot) as text) as bigint)"
_NOW = "cast(cast(pg_snapshot_xmax(pg_current_snapshot()) as text) as bigint)"
_AGE = f"mod({_NOW} - cast(cast(s.xmin as text) as bigint) + 4294967296, 4294967296)"
_SAME_CLUSTER = f"""(
    {_COUNTED} <= {_NOW} and (
        (cast(s.tableoid as bigint) = s.relation
            and cast(cast(s.xmin as text) as bigint) = mod(s.written_by, 4294967296))
        or (s.system_identifier = (select system_identifier from pg_control_system()) and {_AGE} <= {_NOW} - {_COUNTED})
    )
)"""
STILL_HERE = f"""
    system_identifier = case when {_SAME_CLUSTER} then s.system_identifier else 0 end,
    relation = case when {_SAME_CLUSTER} then cast(s.tableoid as bigint) else s.relation end,
    written_by = case when {_SAME_CLUSTER} then txid_current() else s.written_by end
"""
