"""Doctor: what is misconfigured, why it matters, and the command that resolves it. One examination per part.

Findings have the shape that the health report has. Where both look at the same facts (`facts.py`), doctor gives the
finding of the report, and adds why it matters. Nothing is changed.
"""

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

from calc_analytics import days
from calc_analytics.config import redact_url
from calc_analytics.database import schemas
from calc_analytics.database.embedded import data_folder, writable
from calc_analytics.database.engine import transaction
from calc_analytics.database.log_columns import UnfitTable
from calc_analytics.database.server import clock, connections, utc_offsets
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.operations import facts, health
from calc_analytics.operations.facts import Facts, Unanswered
from calc_analytics.operations.findings import OK, WRONG, Finding, note, ok, unanswered, wrong
from calc_analytics.operations.probes import Answer, Prober
from calc_analytics.operations.sources import Sources
from calc_analytics.operations.words import ago
from calc_analytics.plurals import number
from calc_analytics.ports import HOST, is_listening
from calc_analytics.rollup import diagnosis, install, ledger, overflow, widen
from calc_analytics.rollup.foreign import adopt_sql
from calc_analytics.rollups import LOG, chosen_log

OLDEST, NEWEST = 15, 18
SKEW_SECONDS = 5.0
TICKS_KEPT_DAYS = 90
FREE_CONNECTIONS = 20
# The parts that look at the tables.
OF_TABLES = ("tables", "columns", "state", "permissions", "indexes", "xact_id", "log rows")
# Why the two that all others rest on matter, and what to do where they do not answer.
UNANSWERED = {
    "database": ("without it nothing is counted", "start PostgreSQL, or correct DATABASE_URL"),
    "dagster": ("without it there are no ticks and no runs", "start PostgreSQL, or correct DAGSTER_POSTGRES_URL"),
}
# What makes every operation stop, and what resolves it.
UNFIT_COMMANDS: dict[type[Exception], str] = {
    ledger.NotInstalled: "calc-analytics migrate",
    ledger.ClusterChanged: "calc-analytics rebase",
    ledger.LogReplaced: "calc-analytics migrate && calc-analytics rebase && calc-analytics rollup",
    ledger.TimezoneChanged: "set ROLLUP_TIMEZONE back, or calc-analytics rebase",
    ledger.RollupsChanged: "set ROLLUPS back, or calc-analytics migrate",
}
UNFIT = tuple(UNFIT_COMMANDS)


Findings = Iterator[Finding]
# The facts that the judgements need.
GROUPS = ("server", "is_installed", "hidden", "ledger", "daemons")


def _nothing(sources: Sources) -> Findings:
    yield from ()


@dataclass(frozen=True)
class Part:
    """What is examined: by questions of its own, and by facts that the health report has too, which says the same."""

    examine: Callable[[Sources], Findings] = _nothing
    judge: Callable[[Facts], Findings] | None = None


@dataclass(frozen=True)
class Ports:
    """The ports that `up` wants."""

    ui: int
    service: int


def examine(sources: Sources, prober: Prober, ports: Ports) -> list[Finding]:
    """Every part, examined at the same time, within the prober's deadline. Where the tables are not found, what depends
    on them is left out."""
    parts = {name: partial(_listed, part.examine, sources) for name, part in EXAMINATIONS.items()}
    read = facts.read(sources, prober, GROUPS, {**parts, "ports": lambda: list(_ports(ports))})
    found: list[Finding] = []
    is_lost = any(each.level == WRONG for each in read.known("schemas") or [])
    for name in (*parts, "ports"):
        if is_lost and name in OF_TABLES:
            continue
        for each in (*_from_facts(name, read), *_answered(name, read)):
            # Where the database is away, its error is reported once.
            if each.level == OK or not _is_reported(each, found):
                found.append(replace(each, name=name))
    return found


def _from_facts(name: str, read: Facts) -> list[Finding]:
    """What follows from the facts that the health report has too."""
    part = EXAMINATIONS.get(name)
    try:
        return list(part.judge(read)) if part and part.judge else []
    except Unanswered as error:
        return [_unanswered(name, error.answer)]


def _answered(name: str, read: Facts) -> list[Finding]:
    """What the part's own questions found."""
    answer: Answer[list[Finding]] = read.answers[name]
    return [_unanswered(name, answer)] if answer.value is None else answer.value


def _unanswered(name: str, answer: Answer[Any]) -> Finding:
    why, command = UNANSWERED.get(name, ("this part could not be examined", "calc-analytics status"))
    return unanswered(answer, why, command)


def _is_reported(finding: Finding, before: list[Finding]) -> bool:
    return finding.fact in [each.fact for each in before]


def _listed(examination: "Callable[[Sources], Findings]", sources: Sources) -> list[Finding]:
    return list(examination(sources))


def _database(sources: Sources) -> Findings:
    server, place = facts.server(sources), redact_url(sources.url())
    fact = f"PostgreSQL {server.version} at {place}"
    major = server.version_number // 10_000
    if major < OLDEST:
        why = f"the project relies on what PostgreSQL {OLDEST} brought"
        yield wrong(fact, why, f"upgrade the server to {OLDEST} or newer")
    elif major > NEWEST:
        yield note(fact, f"newer than the project was tested with ({OLDEST} to {NEWEST})")
    else:
        yield ok(fact)
    full = connections(sources.engine())
    fact = f"{full.used} of {full.allowed} connections are in use"
    if full.allowed - full.used < FREE_CONNECTIONS:
        why = "Dagster's processes open many at a time; without a free one, ticks and runs fail"
        yield note(fact, why, "alter system set max_connections = 200  -- and restart PostgreSQL")
    else:
        yield ok(fact)


def _schemas(sources: Sources) -> Findings:
    """Where the tables are that the role's search_path finds, and those that it does not find."""
    db = sources.database()
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


def _tables(sources: Sources) -> Findings:
    db = sources.database()
    try:
        with transaction(db.engine) as connection:
            if schemas.hidden(connection, install.table_names(db.log)):
                return
            install.require_fit_tables(connection, db.log)
    except UnfitTable as error:
        why = "its rows cannot be counted exactly, and 'migrate' refuses it"
        yield wrong(str(error), why, f"{error.statement};" if error.statement else "alter it as it says")


def _columns(sources: Sources) -> Findings:
    """Columns of the statistics that are narrower than the log's, and the days that were set aside for it."""
    db = sources.database()
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


def _settings(sources: Sources) -> Findings:
    """Values that are read only when they are used."""
    settings = sources.settings
    try:
        longest = facts.interval(sources)
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
    try:
        read.ledger.require_usable()
        yield ok("the stored snapshot belongs to this cluster; time zone and rollups are those of the settings")
    except UNFIT as error:
        yield wrong(str(error), "refresh, rebuild and verify stop until that is resolved", UNFIT_COMMANDS[type(error)])


def _permissions(sources: Sources) -> Findings:
    db = sources.database()
    role = diagnosis.role(db)
    if role.missing:
        why = "counting, rebuilding or proving fails without them"
        yield wrong(f"the role '{role.name}' lacks rights", why, ";\n".join(role.missing) + ";")
    else:
        yield ok(f"the role '{role.name}' may do all that counting needs")
    if role.is_superuser and not sources.settings.embedded:
        why = "the project needs no superuser; a mistake made as superuser can damage everything"
        yield note(f"'{role.name}' is a superuser", why, "set DATABASE_URL to an ordinary role")
    if not role.sees_others:
        why = "the age and state of other roles' transactions are hidden from 'status' and from the metrics"
        yield note(
            f"'{role.name}' is no member of pg_read_all_stats", why, f'grant pg_read_all_stats to "{role.name}";'
        )
    if not role.may_prune:
        why = "only 'calc-analytics prune' and 'calc-analytics erase' need it"
        yield note(f"'{role.name}' may not delete log rows", why, f'grant delete on {db.log.name} to "{role.name}";')


def _indexes(sources: Sources) -> Findings:
    found = diagnosis.log_indexes(sources.database())
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


def _xact_id(sources: Sources) -> Findings:
    wrong, db = False, sources.database()
    for table in diagnosis.log_tables(db):
        for finding in _of_table(table):
            wrong = True
            yield finding
    if not wrong:
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


def _rows(sources: Sources) -> Findings:
    rows = diagnosis.rows_bypassing(sources.database())
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


def _clock(sources: Sources) -> Findings:
    engine = sources.engine()
    clock(engine)  # so that connecting is not measured
    before = time.time()
    server = clock(engine).timestamp()
    after = time.time()
    skew, uncertain = server - (before + after) / 2, (after - before) / 2
    fact = f"the server's clock is {abs(skew):.2f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
    if abs(skew) > SKEW_SECONDS + uncertain:
        why = "'today' begins at different times here and there, and ages are wrong by as much"
        yield wrong(fact, why, "timedatectl set-ntp true  # on both machines")
    else:
        yield ok(fact)


def _time_zone(sources: Sources) -> Findings:
    name = sources.settings.timezone
    here, now = days.zone(name), datetime.now(timezone.utc)
    instants = [now + timedelta(days=n) for n in range(0, 400, 10)]
    there = utc_offsets(sources.engine(), name, instants)
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


def _dagster(sources: Sources) -> Findings:
    from calc_analytics.orchestration import history

    dagster = sources.dagster()
    yield ok(f"Dagster's storage answers: {history.storage(dagster)}")
    yield from _ticks(history.tick_retention_days(dagster))
    schedule = facts.instigators(sources).get(history.HOUSEKEEPING)
    yield _housekeeping(schedule, history.last_finished_run(dagster, history.HOUSEKEEPING))


def _housekeeping(schedule: Any, run: Any) -> Finding:
    """The schedule that prunes Dagster's event log, and its last run."""
    why = "streaming stores up to about 450 events an hour, which nothing else removes"
    if schedule is None:
        return ok("the clean-up of Dagster's event log starts once the daemon runs")
    if not schedule.on:
        fact = f"the schedule {schedule.name} is turned off"
        return note(fact, why, f"dagster schedule start {schedule.name}")
    if run is not None and not run.succeeded:
        fact = f"the last clean-up of Dagster's event log failed (run {run.run_id[:8]})"
        return note(fact, why, f"open run {run.run_id} in the Dagster UI")
    last = f"last run at {run.ended_at:%Y-%m-%d %H:%M} UTC" if run else "it has not run yet"
    return ok(f"Dagster's event log is cleaned up daily; {last}")


def _ticks(kept: dict[str, int]) -> Findings:
    said = ", ".join(
        f"{name} {'for ever' if kept_days < 0 else f'{kept_days} days'}" for name, kept_days in kept.items()
    )
    fact = f"ticks of sensors are kept: {said}"
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


def _server(read: Facts) -> Findings:
    found = health.judge("database", read)
    if read.server.is_read_only:
        yield replace(found, why="each refresh and rebuild ends with an error")


def _installed(read: Facts) -> Findings:
    found = health.judge("tables", read)
    yield replace(found, why="" if read.is_installed else "without the newest migration nothing is counted")


def _hidden(read: Facts) -> Findings:
    for each in read.hidden:
        why = "nothing is counted, and live views raise an error: what is counted under a policy is wrong"
        yield replace(health.rows_hidden(each), why=why)


def _daemons(read: Facts) -> Findings:
    """That a daemon is dead, the health report says: this is about what is misconfigured."""
    found = health.judge("daemon", read)
    if found.code == "two_daemons":
        yield replace(found, why="statistics stay right, because operations take turns, but all of it is done twice")


EXAMINATIONS: dict[str, Part] = {
    "database": Part(_database, _server),
    "settings": Part(_settings),
    "schemas": Part(_schemas),
    "tables": Part(_tables, _installed),
    "columns": Part(_columns),
    "state": Part(judge=_state),
    "permissions": Part(_permissions, _hidden),
    "indexes": Part(_indexes),
    "xact_id": Part(_xact_id),
    "log rows": Part(_rows),
    "clock": Part(_clock),
    "time zone": Part(_time_zone),
    "dagster": Part(_dagster, _daemons),
}
