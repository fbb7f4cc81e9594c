"""The one statement of a refresh, and the one that looks whether a refresh is needed.

The statement's own snapshot is S2. It reads S1 from the state row, aggregates what is visible in S2 and was not in S1,
adds that to every target and to the ledger, and stores S2. A statement depends on the log and the time zone only, so
its text is made once for each.
"""

from dataclasses import replace
from functools import lru_cache

from calc_analytics.database.sql import quote_literal
from calc_analytics.rollup import journal, ledger
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Log, Rollup
from calc_analytics.rollup.foreign import foreign_rows_sql
from calc_analytics.rollup.snapshot import rows_between
from calc_analytics.rollup.windows import day_begin, has_a_day, local_date, midnight, within_hours

# The age of one in this many counted rows is recorded.
AGE_SAMPLE = 16


def probe_sql(db: Database, thorough: bool = True) -> str:
    """Whether there is a row that is visible now and not in the stored snapshot; if not, and it is to be `thorough`,
    whether there are foreign ones. With the state's columns."""
    return _probe_sql(_without_engine(db), thorough)


@lru_cache(maxsize=16)
def _probe_sql(db: Database, thorough: bool) -> str:
    has_foreign_rows = f"exists ({foreign_rows_sql(db.log)})" if thorough else "false"
    return f"""
    with {_snapshots(db, None)}
    select {ledger.state_columns(db.log)}, is_uncounted,
           case when is_uncounted then false else {has_foreign_rows} end as has_foreign_rows
    from rollup_state s
    cross join lateral (select exists ({_between("xact_id", db.log)}) as is_uncounted offset 0) looked
    where s.log = {quote_literal(db.log.name)}
    """


def refresh_sql(db: Database, step_rows: int | None, sampled: bool = True) -> str:
    """The one statement of a refresh, without parameters. Returns a row per rollup and day, or one without a day.

    `sampled`: whether it also notes the ages of rows, which costs a few per cent.
    """
    return _refresh_sql(_without_engine(db), step_rows, sampled)


@lru_cache(maxsize=32)
def _refresh_sql(db: Database, step_rows: int | None, sampled: bool) -> str:
    log, rollups = db.log, db.log.rollups
    # Only where a backlog is possible: it reads the table's tail once more.
    has_foreign_rows = "false" if step_rows is None else f"exists ({foreign_rows_sql(log)})"
    parts = [
        _snapshots(db, step_rows),
        _today(db),
        _new_rows(db),
        *(_diff(rollup, n, log, sampled) for n, rollup in enumerate(rollups)),
        f"days as materialized (select date, sum({rollups[0].count}) as rows from diff_0 group by date)",
        ledger.seen_cte(log),
        _judged(db),
        *(_added(rollup, n, is_large=step_rows is not None) for n, rollup in enumerate(rollups)),
        _amounts(rollups),
        _hashes(rollups),
        ledger.recorded_cte(db),
        ledger.moved_cte(log, "upto"),
        journal.refreshed_cte(log, AGE_SAMPLE if sampled else None),
    ]
    # Days as text: they are read after the transaction, when the session has its own date style again.
    return f"""
    with {", ".join(parts)}
    select {ledger.state_columns(log)}, (select cast(snapshot as text) from upto) as upto,
           coalesce((select upto.xmax < now.xmax from upto, now), false) as more,
           {has_foreign_rows} as has_foreign_rows,
           j.rollup, cast(j.date as text) as date, j.status, a.keys, a.totals
    from rollup_state s left join (judged j join amounts a using (rollup, date)) on true
    where s.log = {quote_literal(log.name)}
    order by j.date
    """


def _without_engine(db: Database) -> Database:
    """What a statement depends on: the log and the time zone."""
    return replace(db, engine=None, logs_kept_days=None)  # type: ignore[arg-type]  # a key of the cache


def counts_between(db: Database, rollup: Rollup) -> str:
    """SQL: the measures of the rows between two snapshots, by keys and day; parameters of `between`."""
    day = local_date(db.log.event_time, quote_literal(db.timezone))
    return f"""
        select {rollup.key_selects}, rollup_date as date, {rollup.measure_selects}
        from (select *, {day} as rollup_date from {rows_between(db.log, ", ".join(db.log.reads))} l) l
        where {has_a_day("rollup_date")}
        group by {rollup.group_by}, rollup_date
    """


def _between(columns: str, log: Log) -> str:
    """SQL: the rows visible in S2 and not in S1. Two branches, so that each is a scan of the index."""
    return f"""{_newly_written(columns, log)}
            union all
            {_newly_ended(columns, log)}"""


def _newly_written(columns: str, log: Log) -> str:
    """SQL: the rows of S2 whose transactions began after S1. READ COMMITTED, and a cut, would show later ones too.

    The comparison with `xmin` settles nearly every row; the list is searched for the newest only.
    """
    return f"""
            select {columns} from {log.name}
            where xact_id >= (select xmax from stored) and xact_id < (select xmax from upto)
              and (xact_id < (select xmin from upto)
                   or xact_id <> all(cast((select xip from upto) as bigint[])))"""


def _newly_ended(columns: str, log: Log) -> str:
    """SQL: the rows of S2 whose transactions were still open in S1."""
    return f"select {columns} from {log.name} where xact_id = any(cast((select xids from ended) as bigint[]))"


def _snapshots(db: Database, step_rows: int | None) -> str:
    """CTEs: S1 (`stored`), this statement's own snapshot (`now`), and S2 (`upto`): that, or an earlier cut."""
    xid = "cast(cast({} as text) as bigint)".format
    xip = "array(select cast(cast(xid as text) as bigint) from pg_snapshot_xip(snapshot) as xid order by 1)"
    return f"""
    stored as materialized (
        select {xid("pg_snapshot_xmax(snapshot)")} as xmax, {xip} as xip
        from rollup_state s where s.log = {quote_literal(db.log.name)} and {ledger.is_usable_sql(db)}
    ),
    now as materialized (
        select {xid("pg_snapshot_xmin(snapshot)")} as xmin, {xid("pg_snapshot_xmax(snapshot)")} as xmax, {xip} as xip
        from (select pg_current_snapshot() as snapshot offset 0) own where exists (select from stored)
    ),
    {"" if step_rows is None else _cut(db.log, step_rows)}
    {_upto("null" if step_rows is None else "(select xmax from cut)")}
    ended as materialized (
        select array(select xid from unnest(stored.xip) as xid where xid <> all(upto.xip)) as xids from stored, upto
    )"""


def _cut(log: Log, step_rows: int) -> str:
    """CTE: where S2 is cut: after the transaction that completes the step; empty if there are fewer rows.

    A cut at transaction x is the snapshot in which only transactions below x have ended, those still open now aside.
    """
    return f"""
    cut as materialized (
        select max(xact_id) + 1 as xmax
        from (
            select xact_id from {log.name}
            where xact_id >= (select xmax from stored) and xact_id < (select xmax from now)
              and xact_id <> all(cast((select xip from now) as bigint[]))
            limit {step_rows}
        ) first_rows
        having count(*) = {step_rows}
    ),"""


def _upto(cut: str) -> str:
    """CTE: S2, the snapshot up to which this statement counts; `cut` is SQL."""
    return f"""upto as materialized (
        select xmax, xip, coalesce(xip[1], xmax) as xmin,
               cast(concat(coalesce(xip[1], xmax), ':', xmax, ':', array_to_string(xip, ',')) as pg_snapshot)
                   as snapshot
        from (
            select last.xmax, array(select xid from unnest(now.xip) as xid where xid < last.xmax order by 1) as xip
            from now cross join lateral (select least(now.xmax, {cut}) as xmax) last
        ) s2
    ),"""


def _today(db: Database) -> str:
    """CTE: instants between which it is surely today. Comparing with two is much cheaper than computing a row's day.

    From the last instant at which 00:00 shows it is today; clocks may turn back by up to three hours at its end.
    """
    zone = quote_literal(db.timezone)
    margin = "" if db.timezone == "UTC" else " - interval '3 hours'"
    return f"""
    today as materialized (
        select day, {midnight("day", zone)} as first, {midnight("(day + 1)", zone)}{margin} as next
        from (select {local_date("statement_timestamp()", zone)} as day offset 0) now_
    )"""


def _new_rows(db: Database) -> str:
    """CTEs: the new rows, with their day. Several rollups read them from memory.

    What is computed has names that no column of the log may have (`declaration.COMPUTED`).

    A single rollup aggregates the two sources (`returned`: rows of transactions that were still open in S1)
    separately and adds up the few groups, which is cheaper than to append the rows.
    """
    log, time_ = db.log, db.log.event_time
    columns = ", ".join(dict.fromkeys([log.id_column, *log.reads]))
    day = f"""case when {time_} >= (select first from today) and {time_} < (select next from today)
            then (select day from today) else {local_date(time_, quote_literal(db.timezone))} end as rollup_date"""
    selected = f"{columns}, {log.id_column} & {AGE_SAMPLE - 1} = 0 as rollup_sampled, {day}"
    written, ended = _newly_written(selected, log), _newly_ended(selected, log)
    if len(log.rollups) == 1:
        return f"new as not materialized ({written}), returned as not materialized ({ended})"
    return f"new as materialized ({written} union all {ended})"


def _diff(rollup: Rollup, n: int, log: Log, sampled: bool) -> str:
    """CTEs: the new rows' measures by keys and day. Rows without a day (infinity, the year 10000) are left out.

    `offset 0` keeps PostgreSQL from computing and comparing the day of every row once more.
    """
    time_, ages = log.event_time, ""
    if n == 0:
        sample = f"array_agg({time_}) filter (where rollup_sampled)" if sampled else "cast(null as timestamptz[])"
        ages = f", {sample} as rollup_sample, min({time_}) as rollup_oldest"
    sources = ("new", "returned") if len(log.rollups) == 1 else ("new",)
    each = " union all ".join(
        f"select {rollup.key_selects}, rollup_date as date, {rollup.measure_selects}{ages} from {source} "
        f"group by {rollup.group_by}, rollup_date"
        for source in sources
    )
    parts = f"parts_{n} as materialized (select * from ({each} offset 0) every_date where {has_a_day('date')})"
    if len(sources) == 1:
        return f"{parts}, diff_{n} as not materialized (select * from parts_{n})"
    keys = f"{rollup.key_columns}, date"
    sums = rollup.each_measure("sum({name}) as {name}")
    return f"{parts}, diff_{n} as materialized (select {keys}, {sums} from parts_{n} group by {keys})"


def _judged(db: Database) -> str:
    """CTEs: whether each day is built. A day never seen begins here if all of its rows are in this refresh."""
    return f"""
    {_unseen(db)},
    held as materialized ({_held(db.log)}),
    judged as materialized (
        select s.rollup, s.date, s.has_checksum, case
            when s.status is not null then s.status
            when s.date in (select date from older) then 'pending'
            when exists (select from held h where h.rollup = s.rollup and h.date = s.date) then 'pending'
            else 'built' end as status,
            -- Statistics of a day that begins now were not counted: a rebuild replaces them.
            s.status is null and s.date not in (select date from older) as is_foreign
        from seen s
    )"""


def _held(log: Log) -> str:
    """SQL: the days never seen for which a rollup has statistics nevertheless."""
    return " union all ".join(
        f"select {quote_literal(rollup.name)} as rollup, u.date from unseen u "
        f"where exists (select from {rollup.name} t where t.date = u.date)"
        for rollup in log.rollups
    )


def _unseen(db: Database) -> str:
    """CTEs: the days never seen (`unseen`), and those of them that have rows from before (`older`).

    Such rows were written before the project was installed, or came with a partition that was attached. They are found
    in one scan for each run of consecutive days.
    """
    log, zone = db.log, quote_literal(db.timezone)
    hours = within_hours(f"l.{log.event_time}", day_begin("i.first", zone), midnight("(i.last + 1)", zone))
    return f"""unseen as materialized (select distinct date from seen where status is null),
    stretches as materialized (
        select min(date) as first, max(date) as last
        from (select date, date - cast(row_number() over (order by date) as integer) as stretch from unseen) numbered
        group by stretch
    ),
    older as materialized (
        select distinct {local_date(f"l.{log.event_time}", zone)} as date
        from stretches i cross join lateral (
            select {log.event_time} from {log.name} l
            where xact_id < (select xmax from stored) and xact_id <> all(cast((select xip from stored) as bigint[]))
              and {hours}
            union all
            select {log.event_time} from {log.name} l where xact_id is null and {hours}
            offset 0
        ) l
    )"""


def _added(rollup: Rollup, n: int, is_large: bool) -> str:
    """CTE: adds the diff to days that are built; a large one in the order of the target's index."""
    target = rollup.name
    order = "order by " + ", ".join(f"d.{each.name}" for each in rollup.target.primary_key.columns) if is_large else ""
    columns = ", ".join(f"d.{name}" for name in rollup.column_names)
    return f"""
    added_{n} as (
        insert into {target} ({rollup.columns})
        select {columns}
        from diff_{n} d join judged j on j.rollup = {quote_literal(target)} and j.date = d.date and j.status = 'built'
        {order}
        {rollup.or_add}
    )"""


def _amounts(rollups: tuple[Rollup, ...]) -> str:
    """CTE: the totals of the new rows per rollup and day."""
    each = " union all ".join(
        f"select {quote_literal(rollup.name)} as rollup, date, count(*) as keys, {rollup.totals_json()} as totals "
        f"from diff_{n} group by date"
        for n, rollup in enumerate(rollups)
    )
    return f"amounts as materialized ({each})"


def _hashes(rollups: tuple[Rollup, ...]) -> str:
    """CTE: by how much the checksums of days that have one change: the new rows' hashes less the old rows'."""
    each = " union all ".join(_hash_change(rollup, n) for n, rollup in enumerate(rollups))
    return f"hashes as materialized ({each})"


def _hash_change(rollup: Rollup, n: int) -> str:
    old = rollup.hash_of("t")
    sums = {name: f"d.{name}" for name in [*rollup.keys, "date"]}
    sums.update({name: f"coalesce(t.{name}, 0) + d.{name}" for name in rollup.measure_names})
    same = " and ".join(f"t.{name} = d.{name}" for name in [*rollup.keys, "date"])
    return f"""
        select {quote_literal(rollup.name)} as rollup, d.date,
               sum({rollup.row_hash.format(**sums)} - case when t.date is null then 0 else {old} end) as hash
        from judged j join diff_{n} d on d.date = j.date
        left join lateral (
            select {", ".join(f"t.{name}" for name in rollup.column_names)} from {rollup.name} t where {same} offset 0
        ) t on true
        where j.rollup = {quote_literal(rollup.name)} and j.has_checksum and j.status = 'built'
        group by d.date"""
