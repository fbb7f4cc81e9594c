"""Doctor: what is misconfigured, why it matters, and the command that resolves it. One examination per part.

Doctor reads the facts of the health report (`facts.py`), and what is examined here alone with them. Where both look at
the same, doctor gives the finding of the report, and adds why it matters. Nothing is changed.
"""

import json
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

from calc_analytics import days
from calc_analytics.archive.manifest import known_manifest
from calc_analytics.archive.place import Archive
from calc_analytics.archive.store import CannotUseArchive
from calc_analytics.config import Settings
from calc_analytics.database import schemas
from calc_analytics.database.embedded import data_folder, writable
from calc_analytics.database.engine import transaction
from calc_analytics.database.log_columns import UnfitTable
from calc_analytics.database.partitioning import left_check, read_size
from calc_analytics.database.server import Role, clock, connections, read_role, utc_offsets
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.operations import facts, health
from calc_analytics.operations.disclosure import DOCTOR
from calc_analytics.operations.facts import Facts, Unanswered
from calc_analytics.operations.findings import OK, WRONG, Finding, note, ok, unanswered, wrong
from calc_analytics.operations.probes import Answer, Prober
from calc_analytics.operations.sources import Sources
from calc_analytics.operations.words import ago
from calc_analytics.plurals import number
from calc_analytics.ports import HOST, is_listening
from calc_analytics.rollup import diagnosis, install, ledger, overflow, widen
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.foreign import adopt_sql
from calc_analytics.rollups import LOG, chosen_log

OLDEST, NEWEST = 15, 18
SKEW_SECONDS = 5.0
TICKS_KEPT_DAYS = 90
FREE_CONNECTIONS = 20
# From here on old rows had better be dropped with their partition.
LARGE_ROWS, LARGE_BYTES = 50_000_000, 20 * 2**30
# The parts that look at the tables.
OF_TABLES = (
    "tables",
    "columns",
    "state",
    "permissions",
    "triggers",
    "indexes",
    "partitioning",
    "xact_id",
    "log rows",
    "health",
)
SEE_TICK = "open its last tick in the Dagster UI"
# The probes of the health report that have a part of their own, and those that fail while no daemon runs.
EXAMINED = ("database", "tables", "state", "daemon")
FOLLOW_DAEMON = ("sensor", "schedule", "freshness", "audit")
# Why the two that all others rest on matter, and what to do where they do not answer.
UNANSWERED = {
    "database": ("without it nothing is counted", "start PostgreSQL, or correct DATABASE_URL"),
    "dagster": ("without it there are no ticks and no runs", "start PostgreSQL, or correct DAGSTER_POSTGRES_URL"),
}
Findings = Iterator[Finding]


@dataclass(frozen=True)
class Part:
    """What is examined: the facts of the health report, and the database by questions of the part's own."""

    judge: Callable[[Facts], Findings] | None = None
    examine: Callable[[Database], Findings] | None = None


@dataclass(frozen=True)
class Ports:
    """The ports that `up` wants."""

    ui: int
    service: int


def examine(sources: Sources, prober: Prober, ports: Ports) -> list[Finding]:
    """The findings of every part, within the prober's deadline. Where the tables are not found, what depends on them is
    left out."""
    parts = {name: partial(_listed, part.examine) for name, part in EXAMINATIONS.items() if part.examine}
    more: dict[str, facts.Readers] = {
        "settings": {"ports": lambda _: list(_ports(ports))},
        "catalogs": {"role": _role, **parts},
        "dagster": {"dagster": _storage},
    }
    read = facts.read(sources, prober, (*health.NEEDED, "url"), more)
    found: list[Finding] = []
    is_lost = any(each.level == WRONG for each in read.known("schemas") or [])
    for name, part in EXAMINATIONS.items():
        if is_lost and name in OF_TABLES:
            continue
        for each in (*_judged(name, part, read), *_answered(name, read)):
            # Where the database is away, its error is reported once.
            if each.level == OK or not _is_reported(each, found):
                found.append(each if each.name else replace(each, name=name))
    return found


def _listed(examination: Callable[[Database], Findings], db: Database) -> list[Finding]:
    return list(examination(db))


def _judged(name: str, part: Part, read: Facts) -> list[Finding]:
    """What follows from the facts of the health report."""
    try:
        return list(part.judge(read)) if part.judge else []
    except Unanswered as error:
        return [_unanswered(name, error.answer)]


def _answered(name: str, read: Facts) -> list[Finding]:
    """What the part's own questions found."""
    answer: Answer[list[Finding]] = read.answers.get(name, Answer([], None, 0.0))
    return [_unanswered(name, answer)] if answer.value is None else answer.value


def _unanswered(name: str, answer: Answer[Any]) -> Finding:
    why, command = UNANSWERED.get(name, ("this part could not be examined", "calc-analytics status"))
    return unanswered(answer, why, command)


def _is_reported(finding: Finding, before: list[Finding]) -> bool:
    return finding.fact in [each.fact for each in before]


def _server(read: Facts) -> Findings:
    fact = f"PostgreSQL {read.server.version} at {read.known('url')}"
    major = read.server.version_number // 10_000
    if major < OLDEST:
        why = f"the project relies on what PostgreSQL {OLDEST} brought"
        yield wrong(fact, why, f"upgrade the server to {OLDEST} or newer")
    elif major > NEWEST:
        yield note(fact, f"newer than the project was tested with ({OLDEST} to {NEWEST})")
    else:
        yield ok(fact)
    if read.server.is_read_only:
        yield replace(health.judge("database", read), name="", why="each refresh and rebuild ends with an error")


def _connections(db: Database) -> Findings:
    full = connections(db.engine)
    fact = f"{full.used} of {full.allowed} connections are in use"
    if full.allowed - full.used < FREE_CONNECTIONS:
        why = "Dagster's processes open many at a time; without a free one, ticks and runs fail"
        yield note(fact, why, "alter system set max_connections = 200  -- and restart PostgreSQL")
    else:
        yield ok(fact)


def _schemas(db: Database) -> Findings:
    """Where the tables are that the role's search_path finds, and those that it does not find."""
    with transaction(db.engine) as connection:
        found = schemas.look(connection, install.table_names(db.log), db.log.name)
    for each in found.hidden:
        why = "'migrate' would create a second, empty table; rows in this one would not be counted"
        yield wrong(each.fact, why, each.statement)
    if found.copies:
        fact = f"{db.log.name} is also in the schema {', '.join(found.copies)}"
        why = "rows written there are not counted here: the search_path decides which table is counted"
        yield note(fact, why)
    if found.ignores is not None:
        fact = f"the search_path is {found.path}, and not {found.ignores}, as the URL or PGOPTIONS asks"
        why = "a pooler ignores start-up options: other tables are found than you mean"
        yield wrong(fact, why, f'alter role "{found.role}" set search_path = {found.ignores}')
    if not found.hidden and found.creates_in is None:
        fact = f"the search_path ({found.path}) names no schema that exists and that the role may use"
        why = "no table is found, and none can be created"
        yield wrong(fact, why, f'alter role "{found.role}" set search_path = public  -- or the schema of the tables')
    elif not found.hidden:
        yield ok(f"the search_path finds the tables in {found.where}")


def _tables(db: Database) -> Findings:
    try:
        with transaction(db.engine) as connection:
            if schemas.hidden(connection, install.table_names(db.log)):
                return
            install.require_fit_tables(connection, db.log)
    except UnfitTable as error:
        why = "its rows cannot be counted exactly, and 'migrate' refuses it"
        yield wrong(str(error), why, f"{error.statement};" if error.statement else "alter it as it says")


def _columns(db: Database) -> Findings:
    """Columns of the statistics that are narrower than the log's, and the days that were set aside for it."""
    with transaction(db.engine) as connection:
        narrow, misfits = widen.narrow_keys(connection, db.log), overflow.known(connection, db.log)
    for change in narrow:
        fact = f"{change.table}.{change.column} is {change.before}, but {db.log.name} has {change.after}"
        why = "a day with a value that does not fit is set aside and not counted"
        yield wrong(fact, why, f"calc-analytics widen {change.column}")
    for misfit in misfits:
        fact = f"{misfit.day} of {misfit.rollup} is set aside: {misfit}"
        command = f"calc-analytics widen {misfit.column}\ncalc-analytics rollup --day {misfit.day}"
        yield wrong(fact, "its statistics are not kept up to date, and rows are missing from them", command)
    if not narrow:
        yield ok("the columns of the statistics are as wide as the log's")


def _settings(read: Facts) -> Findings:
    """Values that are read only when they are used."""
    settings = read.settings
    try:
        longest = facts.interval(settings)
        yield ok(f"the schedule is '{settings.cron}': at most {ago(longest)} between two runs")
    except CalcAnalyticsError as error:
        why = "Dagster cannot load the schedule, so no day is rebuilt automatically"
        yield wrong(str(error), why, "set ROLLUP_CRON to a cron line such as '0 * * * *', or unset it")
    try:
        names = chosen_log(settings.rollups).names
        yield ok(f"{number(len(names), 'rollup')} of {len(LOG.names)} are kept: {', '.join(names)}")
    except CalcAnalyticsError as error:
        yield wrong(str(error), "nothing is counted", f"set ROLLUPS to some of {','.join(LOG.names)}")
    yield from _folder()


def _state(read: Facts) -> Findings:
    if read.ledger.error is None:
        yield ok("the stored snapshot belongs to this cluster; time zone and rollups are those of the settings")
    else:
        why = "refresh, rebuild and verify stop until that is resolved"
        yield replace(health.judge("state", read), name="", why=why)


def _role(db: Database) -> Role:
    return read_role(db.engine, db.log.name, diagnosis.needed_rights(db.log))


def _permissions(read: Facts) -> Findings:
    for each in read.hidden:
        why = "nothing is counted, and live views raise an error: what is counted under a policy is wrong"
        yield replace(health.rows_hidden(each), why=why)
    answer: Answer[Role] = read.answers["role"]
    if answer.value is None:
        raise Unanswered(answer)
    yield from _of_role(answer.value, read.settings)


def _of_role(role: Role, settings: Settings) -> Findings:
    if role.missing:
        why = "counting, rebuilding or proving fails without them"
        yield wrong(f"the role '{role.name}' lacks rights", why, ";\n".join(role.missing) + ";")
    else:
        yield ok(f"the role '{role.name}' may do all that counting needs")
    if role.is_superuser and not settings.embedded:
        why = "the project needs no superuser; a mistake made as superuser can damage everything"
        yield note(f"'{role.name}' is a superuser", why, "set DATABASE_URL to an ordinary role")
    if not role.sees_others:
        why = "the age and state of other roles' transactions are hidden from 'status' and from the metrics"
        yield note(
            f"'{role.name}' is no member of pg_read_all_stats", why, f'grant pg_read_all_stats to "{role.name}";'
        )
    if not role.may_prune:
        why = "only 'calc-analytics prune' and 'calc-analytics erase' need it"
        yield note(f"'{role.name}' may not delete log rows", why, f'grant delete on {LOG.name} to "{role.name}";')


def _triggers(db: Database) -> Findings:
    """Triggers and rules on the project's tables: the project creates none."""
    why = "it is a part of each refresh and rebuild: an error in it stops them, and statistics that it changes differ"
    for each in diagnosis.foreign_triggers(db):
        fact = f"the {each.kind} {each.name} of {each.table} is not the project's"
        yield note(fact, why, f"drop {each.kind} {each.name} on {each.table};")


def _indexes(db: Database) -> Findings:
    found = diagnosis.log_indexes(db)
    wanted = "index on (xact_id, hour of created_at)"
    for index in found:
        command = ";\n".join(index.statements) + ";"
        if index.state == "left over":
            fact = f"{index.table} has its {wanted} more than once: one is left over from a build that was interrupted"
            yield note(fact, "each insert pays for it", command)
        elif index.state == "not attached":
            fact = f"the {wanted} of {index.table} is not attached to the indexes of all its partitions"
            yield note(fact, "new partitions get one of their own, and old ones may have two", command)
        elif index.state != "there":
            why = "every refresh reads the whole table to find the new rows"
            yield wrong(f"the index of {index.table} on (xact_id, hour of created_at) is {index.state}", why, command)
    if all(index.state == "there" for index in found):
        yield ok(f"the {wanted} is there, on {number(len(found), 'table')}")


def _size(db: Database) -> Findings:
    """A large log table without partitions."""
    with transaction(db.engine) as connection:
        size, left = read_size(connection, db.log.name), left_check(connection, db.log.name)
    if left is not None:
        fact = f"{db.log.name} has the check {left.name} of a partitioning that was not finished"
        yield wrong(fact, f"PostgreSQL refuses its rows from {left.until:%Y-%m-%d} (UTC) on", left.drop)
        return
    fact = f"{db.log.name} has about {size.rows:,} rows, {size.bytes / 2**30:.1f} GB with its indexes"
    if size.is_partitioned:
        yield ok(f"{db.log.name} is partitioned: see 'calc-analytics partitions'")
    elif size.rows > LARGE_ROWS or size.bytes > LARGE_BYTES:
        why = "deleted rows leave space that VACUUM has to clean up; of a dropped partition it is free at once"
        yield note(f"{fact}, and is not partitioned", why, "calc-analytics doctor --partitioning")
    else:
        yield ok(fact)


def _xact_id(db: Database) -> Findings:
    found = [each for table in diagnosis.log_tables(db) for each in _of_table(table)]
    yield from found
    if not found:
        yield ok(f"each row of {db.log.name} gets its transaction's id, whichever way it is inserted")


def _of_table(table: diagnosis.LogTable) -> Findings:
    name = table.name
    uncounted = "rows written there carry no id, or a wrong one: they are missed or counted twice"
    if not table.has_column:
        yield wrong(f"{name} has no column xact_id", uncounted, "calc-analytics migrate")
        return
    if table.foreign:
        yield wrong(f"{name} is a foreign table", "its transactions are another cluster's", f"{table.detach};")
    if not table.default_in_place:
        default = f"is {table.default}" if table.default else "is missing"
        yield wrong(f"the default of {name}.xact_id {default}", uncounted, "calc-analytics migrate")
    for trigger in table.triggers_setting_it:
        yield wrong(
            f"the trigger {trigger} of {name} mentions xact_id", uncounted, f"drop trigger {trigger} on {name};"
        )
    for rule in table.insert_rules:
        why = "rows may end up elsewhere than where they are counted"
        yield wrong(f"the rule {rule} of {name} rewrites inserts", why, f"drop rule {rule} on {name};")
    if table.subscriptions:
        why = "replicated rows bring the ids of the cluster they come from"
        yield wrong(f"{name} is filled by logical replication", why, "leave xact_id out of the publication's columns")


def _rows(db: Database) -> Findings:
    rows = diagnosis.rows_bypassing(db)
    rebase = "find the writer that names xact_id; then calc-analytics rebase && calc-analytics rollup"
    if rows.from_the_future:
        fact = f"{number(rows.from_the_future, 'log row')} or more have an xact_id that no transaction has had yet"
        yield wrong(fact, "they were written by another cluster, or by hand, and are not counted", adopt_sql(LOG) + ";")
    if rows.without_id:
        fact = f"{number(rows.without_id, 'log row')} of the last hour have no xact_id"
        why = "normal within an hour after 'migrate'; else a writer sets it to null, and its rows are missed"
        yield note(fact, why, rebase)
    if not rows.from_the_future and not rows.without_id:
        yield ok("every log row of the last hour has its xact_id")


def _clock(db: Database) -> Findings:
    before = time.time()
    server = clock(db.engine).timestamp()
    after = time.time()
    skew, uncertain = server - (before + after) / 2, (after - before) / 2
    fact = f"the server's clock is {abs(skew):.2f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
    if abs(skew) > SKEW_SECONDS + uncertain:
        why = "'today' begins at different times here and there, and ages are wrong by as much"
        yield wrong(fact, why, "timedatectl set-ntp true  # on both machines")
    else:
        yield ok(fact)


def _time_zone(db: Database) -> Findings:
    name = db.timezone
    here, now = days.zone(name), datetime.now(timezone.utc)
    instants = [now + timedelta(days=n) for n in range(0, 400, 10)]
    there = utc_offsets(db.engine, name, instants)
    differ = [at for at, offset in zip(instants, there, strict=True) if offset != _offset(here, at)]
    if differ:
        fact = f"Python and PostgreSQL disagree about {name} from {differ[0]:%Y-%m-%d} on"
        yield wrong(
            fact, "days would begin at different times", "pip install -U tzdata, and update the server's tzdata"
        )
    else:
        yield ok(f"days are in {name}; it is {days.today(name)} there")


def _offset(zone: Any, at: datetime) -> float:
    offset = at.astimezone(zone).utcoffset()
    return offset.total_seconds() if offset is not None else 0.0


def _dagster(read: Facts) -> Findings:
    """That a daemon is dead, the health report says: this is about what is misconfigured."""
    daemon = health.judge("daemon", read)
    if daemon.code == "two_daemons":
        why = "statistics stay right, because operations take turns, but all of it is done twice"
        yield replace(daemon, name="", why=why)
    yield _housekeeping(read)


def _housekeeping(read: Facts) -> Finding:
    """The schedule that prunes Dagster's event log; that it fails, the health report says."""
    from calc_analytics.orchestration.history import HOUSEKEEPING

    schedule = read.instigators.get(HOUSEKEEPING)
    if schedule is None:
        return ok("the clean-up of Dagster's event log starts once the daemon runs")
    if not schedule.on:
        why = "streaming stores up to about 450 events an hour, which nothing else removes"
        return note(f"the schedule {HOUSEKEEPING} is turned off", why, f"dagster schedule start {HOUSEKEEPING}")
    return ok("Dagster's event log is cleaned up daily")


def _storage(record: Any) -> list[Finding]:
    from calc_analytics.orchestration import history

    answers = ok(f"Dagster's storage answers: {history.storage(record.dagster)}")
    return [answers, *_ticks(history.tick_retention_days(record.dagster))]


def _ticks(kept: dict[str, int]) -> Findings:
    spans = [f"{name} {'without limit' if days_ < 0 else number(days_, 'day')}" for name, days_ in kept.items()]
    fact = f"ticks of sensors are kept: {', '.join(spans)}"
    counted = {name: kept_days for name, kept_days in kept.items() if name != "started"}
    if any(kept_days < 0 or kept_days > TICKS_KEPT_DAYS for kept_days in counted.values()):
        why = "the sensor ticks every ten seconds, 8,640 rows a day"
        yield note(fact, why, "copy the block 'retention' of the project's dagster.yaml into DAGSTER_HOME's")
    else:
        yield ok(fact)


def _folder() -> Findings:
    """Nothing, unless logs cannot be where they belong."""
    folder, place = data_folder(), writable(data_folder())
    if place != folder:
        why = f"logs and the output of runs go to {place}, which may be lost at a restart of the machine"
        yield note(f"{folder} cannot be written to", why, f"make {folder.parent} writable")


def _ports(ports: Ports) -> Findings:
    asked = (
        (ports.ui, "--ui-port", "/server_info", "dagster_webserver_version", "the Dagster UI"),
        (ports.service, "--service-port", "/", "data", "the HTTP service"),
    )
    for port, option, path, key, name in asked:
        if not is_listening(port):
            yield ok(f"port {port} is free for {name}")
        elif _answers(port, path, key):
            yield ok(f"{name} answers on port {port}")
        else:
            why = f"'calc-analytics up' wants it for {name}"
            yield wrong(f"another program has port {port}", why, f"calc-analytics up {option} {port + 1}")


def _answers(port: int, path: str, key: str) -> bool:
    """Whether what listens there is what we expect."""
    with suppress(OSError, ValueError), urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=2) as answer:
        return key in json.load(answer)
    return False


def _installed(read: Facts) -> Findings:
    found = health.judge("tables", read)
    yield replace(found, name="", why="" if read.is_installed else "without the newest migration nothing is counted")


def _archive(db: Database) -> Findings:
    """Whether the archive can be written, and which counted days are not in it; nothing without ARCHIVE_URL."""
    if db.archive_url is None:
        return
    place = Archive(db)
    try:
        place.store.require_writable()
        yield ok(f"{place.store.address.shown} can be written")
    except CannotUseArchive as error:
        yield wrong(str(error), "counted days cannot be archived, so their log rows cannot be pruned", "see the reason")
    with transaction(db.engine) as connection:
        left = ledger.days_to_archive(connection, db.log, days.today(db.timezone))
        archived = [each for each in ledger.archived_days(connection, db.log).values() if each.manifest is not None]
    yield from _newest_manifest(place, archived)
    if left:
        fact = f"{number(len(left), 'counted day')} {'is' if len(left) == 1 else 'are'} not archived whole"
        yield note(fact, "their log rows are not pruned", "calc-analytics archive")
    else:
        yield ok("every counted day that is over is archived")


def _newest_manifest(place: Archive, archived: Sequence[ledger.ArchivedDay]) -> Findings:
    """Whether the archive there is the one that was written, by the newest of the archived days."""
    if not archived:
        return
    try:
        known_manifest(place.store, place.db, archived[-1])
    except CalcAnalyticsError as error:
        why = "archived days cannot be counted again: ARCHIVE_URL may name another place"
        yield wrong(str(error), why, "calc-analytics archive --check")


def _health(read: Facts) -> Findings:
    """What else is wrong in the health report. While the daemon is dead, as before `up`, what follows is a note."""
    report = health.report(read)
    found = [each for each in report.findings if each.name not in EXAMINED and each.level != OK]
    daemon = next(each for each in report.findings if each.name == "daemon")
    if daemon.is_known and not daemon.ok and not daemon.code:
        why = "nothing is counted, rebuilt or proven automatically"
        yield note(daemon.fact, why, daemon.command)
        found = [each for each in found if each.name not in FOLLOW_DAEMON]
    for each in found:
        yield each if each.command != DOCTOR else replace(each, command=SEE_TICK if each.is_known else health.STATUS)


# Examined in this order: what waits for locks on the ledger or on the log comes last.
EXAMINATIONS: dict[str, Part] = {
    "settings": Part(_settings),
    "database": Part(_server, _connections),
    "schemas": Part(examine=_schemas),
    "state": Part(_state),
    "permissions": Part(_permissions),
    "triggers": Part(examine=_triggers),
    "clock": Part(examine=_clock),
    "time zone": Part(examine=_time_zone),
    "columns": Part(examine=_columns),
    "tables": Part(_installed, _tables),
    "indexes": Part(examine=_indexes),
    "partitioning": Part(examine=_size),
    "xact_id": Part(examine=_xact_id),
    "log rows": Part(examine=_rows),
    "archive": Part(examine=_archive),
    "dagster": Part(_dagster),
    "health": Part(_health),
    "ports": Part(),
}
