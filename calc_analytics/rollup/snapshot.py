"""PostgreSQL snapshots as values, and the conditions on `xact_id` that everything rests on.

A snapshot 'xmin:xmax:xip' shows which transactions had committed when it was taken: those below xmax that are not
in the list xip of transactions in progress. Source: PostgreSQL's documentation, "Transaction ID and Snapshot
Information Functions". They are plain comparisons with constants, which an index can serve and which
cost next to nothing per row; the equivalent `pg_visible_in_snapshot` would be called for every row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.sql import quote_literal
from calc_analytics.rollup.declaration import Log

# The row had committed when the snapshot was taken; without an `xact_id` it is older than any. The first comparison
# settles nearly every row, the list is searched for the newest only.
VISIBLE = "(xact_id < {xmin} or (xact_id < {xmax} and xact_id <> all({xip}))) is not false"

_XMAX = "cast(cast(pg_snapshot_xmax({}) as text) as bigint)"
_NOW, _COUNTED = _XMAX.format("pg_current_snapshot()"), _XMAX.format("s.snapshot")
# How many transactions ago the state row `s` was written here. Its xmin has 32 bits.
_AGE = f"mod({_NOW} - cast(cast(s.xmin as text) as bigint) + 4294967296, 4294967296)"

# The ids in the state row `s` are this cluster's. A physical copy keeps the system identifier; pg_upgrade gives a new
# one, but keeps transaction ids, oids, and each row's xmin: if they match the row, it was written here. A dump
# and logical replication keep none of them, and a copy of a cluster has the identifier too. So a row that was brought
# here is accepted only if this cluster's ids were beyond the stored snapshot when it was written: else new rows get
# ids that the snapshot calls counted. No snapshot of this cluster lies ahead of the current one.
SAME_CLUSTER = f"""(
        {_COUNTED} <= {_NOW} and (
            (cast(s.tableoid as bigint) = s.relation
                and cast(cast(s.xmin as text) as bigint) = mod(s.written_by, 4294967296))
            or (s.system_identifier = (select system_identifier from pg_control_system())
                and {_AGE} <= {_NOW} - {_COUNTED})
        )
    )"""


def same_log(oid: str) -> str:
    """SQL: the log table with that oid is the one whose rows the state row `s` counted.

    A dump that was restored into the same cluster has new oids, the state table's own too, until the first refresh.
    """
    return f"(s.log_relation = cast({oid} as bigint) or s.relation <> cast(s.tableoid as bigint))"


def log_oid(log: Log) -> str:
    """SQL: the oid of the table that has the log's name while the statement runs; null if there is none."""
    return f"cast(to_regclass({quote_literal(log.name)}) as oid)"


def stored_cte(log: Log, oid: str | None = None, refusals: Mapping[str, str] | None = None) -> str:
    """CTE: the stored snapshot for a statement that must read it at its own instant.

    `stored` has timezone, xmin, xmax, xip, and those of xip that have ended since. Where counting must not go on,
    reading it is an error with advice. `oid` is the log table's (default: of the table with its name);
    `refusals` are further messages, each with the condition under which it is raised.
    """
    cases = {
        **(refusals or {}),
        "no state, run calc-analytics migrate": "s.log is null",
        "restored into another cluster, run calc-analytics rebase": f"{SAME_CLUSTER} is not true",
        "the log table was replaced, run calc-analytics migrate, then calc-analytics rebase":
            f"{same_log(oid or log_oid(log))} is not true",
    }  # fmt: skip
    # With the log's name the cast is not a constant, which would raise when the statement is planned.
    whens = "".join(
        f"""
                when {condition} then cast({quote_literal(message + ": ")} || coalesce(s.log, l.name) as pg_snapshot)"""
        for message, condition in cases.items()
    )
    return f"""stored as materialized (
        select timezone, cast(cast(pg_snapshot_xmin(snapshot) as text) as bigint) as xmin,
               cast(cast(pg_snapshot_xmax(snapshot) as text) as bigint) as xmax,
               array(select cast(cast(xid as text) as bigint) from pg_snapshot_xip(snapshot) as xid) as xip,
               array(select cast(cast(xid as text) as bigint) from pg_snapshot_xip(snapshot) as xid
                     where pg_visible_in_snapshot(xid, pg_current_snapshot())) as ended
        from (
            select s.timezone, case{whens}
                else s.snapshot end as snapshot
            from (values ({quote_literal(log.name)})) l (name) left join rollup_state s on s.log = l.name
        ) state
    )"""


STORED_XMAX = "(select xmax from stored)"
STORED_ENDED = "cast((select ended from stored) as bigint[])"
STORED_VISIBLE = VISIBLE.format(
    xmin="(select xmin from stored)",
    xmax=STORED_XMAX,
    xip="cast((select xip from stored) as bigint[])",
)


@dataclass(frozen=True)
class Snapshot:
    """A `pg_snapshot`: all below `xmin` have ended; of those below `xmax`, `xip` holds the ones still open."""

    xmin: int
    xmax: int
    xip: tuple[int, ...]
    text: str

    @classmethod
    def parse(cls, text_: str) -> "Snapshot":
        """From PostgreSQL's text form, for example '10:20:10,14,15'."""
        xmin, xmax, xip = text_.split(":")
        return cls(int(xmin), int(xmax), tuple(int(xid) for xid in xip.split(",") if xid), text_)

    @classmethod
    def now(cls, connection: Connection) -> "Snapshot":
        """What is committed at this moment."""
        return cls.parse(connection.execute(text("select cast(pg_current_snapshot() as text)")).scalar_one())

    def bind(self, name: str) -> dict[str, Any]:
        """The parameters of `visible` under that name."""
        return {f"{name}_xmin": self.xmin, f"{name}_xmax": self.xmax, f"{name}_xip": list(self.xip)}


# Sees the rows without an `xact_id` only: after a rebase, those from before it.
BEFORE_ANY = Snapshot.parse("1:1:")


def between(older: Snapshot, newer: Snapshot) -> dict[str, Any]:
    """The parameters of `rows_between`. A transaction that is open in both is left out: its rows, however many, would
    be read only to be found invisible."""
    ended = [xid for xid in older.xip if xid not in newer.xip]
    return {"from_xmax": older.xmax, "to_xmax": newer.xmax, "to_xip": list(newer.xip), "ended": ended}


def rows_between(log: Log, columns: str = "*") -> str:
    """SQL: the rows that had committed when the newer snapshot was taken, and had not when the older one was.

    Two branches, so that each is a scan of the index, independent of the planner's choice for the other.
    """
    return f"""(
            select {columns} from {log.name}
            where xact_id >= :from_xmax and xact_id < :to_xmax and xact_id <> all(cast(:to_xip as bigint[]))
            union all
            select {columns} from {log.name} where xact_id = any(cast(:ended as bigint[]))
        )"""


def visible(name: str) -> str:
    """SQL: the row had committed when the snapshot bound as `name` was taken, rows without `xact_id` included."""
    xip = f"cast(:{name}_xip as bigint[])"
    return VISIBLE.format(xmin=f":{name}_xmin", xmax=f":{name}_xmax", xip=xip)
