"""The health report: are the rollups kept up to date, and are they right? One finding per probe.

Each probe is a pure function of facts, so that it can be tested without a database. The report answers
`GET /health/rollup`, the gauges of `/metrics` and the head of `calc-analytics status`; alerts are its transitions.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING, Any

from calc_analytics import __version__
from calc_analytics.database import row_security
from calc_analytics.database.partitioning import LeftCheck
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.operations import facts as facts_
from calc_analytics.operations.disclosure import DOCTOR, cause_of
from calc_analytics.operations.facts import Facts, Unanswered
from calc_analytics.operations.findings import (
    NOTE,
    WRONG,
    Finding,
    Problem,
    is_common_cause,
    note,
    ok,
    unanswered,
    wrong,
)
from calc_analytics.operations.probes import Answer, Prober
from calc_analytics.operations.sources import Sources
from calc_analytics.operations.words import USE_THE_PRIMARY, ago, first_of, in_rollups, instant
from calc_analytics.plurals import number

if TYPE_CHECKING:
    from calc_analytics.orchestration.history import FailedRun, Heartbeat, Instigator

READ_ONLY = "nothing can be counted"
STATUS, UP, VERIFY = "calc-analytics status", "calc-analytics up", "calc-analytics verify"
# A daemon that missed two is dead.
HEARTBEATS_MISSED = 2
TWO_DAEMONS = "two of Dagster's daemons run at once, so ticks and runs are duplicated"
STOP_ONE = "stop one of them: 'dagster dev' or 'calc-analytics up', or a second 'up' on another machine"
# The sensor begins a tick every ten seconds; one that has much to count may take longer.
TICK_SECONDS = 60
# A sensor's failed tick is retried within seconds; a schedule's is not.
FAILED_TICKS = {"sensor": 2, "schedule": 1}
FRESH_INTERVALS = 2
# All days are audited every hour; three hours without are two audits that failed.
AUDIT_SECONDS = 3 * 3600.0
# Today and yesterday are audited every minute.
RECENT_AUDIT_SECONDS = 600.0
# The day with the oldest proof is compared with the log within 1 % of the time, so one round over all days takes a
# hundred times as long as comparing them. Eight days are a round of two hours of comparing, and the weekend in which
# nothing ran; a log that needs more has twice its round.
PROOF_SECONDS = 8 * 86_400.0
# For so long before the first row that has no partition.
PARTITION_SECONDS, PARTITION_NOTE_SECONDS = 86_400.0, 7 * 86_400.0
ROUNDS, PATROL_SHARE = 2, 0.01


@dataclass(frozen=True)
class Health:
    """All findings. `running`: the daemon, its sensor and its schedule; `healthy`: everything.

    `last_run` is when rows were last counted, as an ISO instant.
    """

    at: datetime
    findings: list[Finding]
    last_run: str | None = None

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.wrong

    @property
    def running(self) -> bool:
        """Whether rows are counted and days rebuilt automatically."""
        return all(finding.ok for finding in self.findings if finding.name in RUNNING)

    @property
    def wrong(self) -> list[Finding]:
        """The findings that are wrong."""
        return [finding for finding in self.findings if not finding.ok]

    @property
    def notes(self) -> list[Finding]:
        """The findings that are not wrong and should be looked at."""
        return [finding for finding in self.findings if finding.level == NOTE]

    def as_dict(self) -> dict[str, Any]:
        """Everything, for `status --json`."""
        return self._as_dict(self.findings)

    def public(self) -> dict[str, Any]:
        """The `data` of `GET /health/rollup`, which is public."""
        return self._as_dict([finding.as_public() for finding in self.findings])

    def _as_dict(self, probes: list[Finding]) -> dict[str, Any]:
        return {
            "status": "ok" if self.healthy else "unhealthy",
            "running": self.running,
            "healthy": self.healthy,
            "last_run": self.last_run,
            "checked_at": instant(self.at),
            "version": __version__,
            "probes": [finding.as_dict() for finding in probes],
        }


def health(sources: Sources, prober: Prober) -> Health:
    """Reads the facts and reports; returns within the prober's deadline."""
    return report(facts_.read(sources, prober, NEEDED))


def report(facts: Facts) -> Health:
    """The health report that follows from the facts."""
    findings = [judge(name, facts) for name in PROBES]
    ledger = facts.known("ledger")
    last = ledger.refreshed.at if ledger and ledger.refreshed else None
    return Health(facts.at, _each_cause_once(findings), instant(last) if last else None)


@dataclass(frozen=True)
class Probe:
    """A finding of the report: how it follows from the facts, and of which groups.

    While one of the probes `roots` cannot be answered, this one cannot be answered either, for the same reason.
    """

    judge: Callable[[Facts], Finding]
    groups: tuple[str, ...]
    roots: tuple[str, ...] = ()


def judge(name: str, facts: Facts) -> Finding:
    """The finding of that probe, from the facts of its groups."""
    probe = PROBES[name]
    try:
        found = probe.judge(facts)
    except Unanswered as error:
        found = unanswered(error.answer)
    except CalcAnalyticsError as error:
        found = unanswered(Answer(None, str(error), 0.0, cause_of(error)))
    command = found.command or ("" if found.ok else STATUS)
    seconds = max(facts.answers[group].seconds for group in probe.groups)
    return replace(found, name=name, command=command, public=found.public or found.fact, seconds=seconds)


def _each_cause_once(findings: list[Finding]) -> list[Finding]:
    """The findings, of which the first alone states what several have in common; the others name that one."""
    first: dict[str, str] = {}
    found = []
    for each in findings:
        named = first.setdefault(str(each.code), each.name) if is_common_cause(each) else each.name
        found.append(each if named == each.name else replace(each, public=f"not known: see the probe {named}"))
    return found


def _database(facts: Facts) -> Finding:
    fact, public = f"PostgreSQL {facts.server.version} answered", "the database answered"
    if facts.server.resets:
        but = ", but it is read-only by default_transaction_read_only"
        command = " ".join(f"{statement};" for statement in facts.server.resets)
        found = wrong(f"{fact}{but}: {READ_ONLY}", command=command, public=f"{public}{but}: {READ_ONLY}")
        return replace(found, code="read_only", public_command=DOCTOR)
    if facts.server.is_read_only:
        but = f", but it is read-only (a standby?): {READ_ONLY}"
        return wrong(fact + but, command=USE_THE_PRIMARY, public=public + but, code="read_only")
    return ok(fact, public)


def _tables(facts: Facts) -> Finding:
    if facts.is_installed:
        return ok("tables, views and migrations are there")
    fact = "the newest migration has not run, or ROLLUPS names other rollups than those that are kept"
    return wrong(fact, command="calc-analytics migrate", code="not_installed")


def _state(facts: Facts) -> Finding:
    facts.ledger.require_usable()
    for each in facts.hidden:
        return rows_hidden(each)
    if facts.log.error is not None:
        raise facts.log.error
    kept = number(len(facts.ledger.days), "rollup")
    return ok(f"the stored snapshot is this cluster's; {kept}, days in {facts.settings.timezone}")


def rows_hidden(found: row_security.Hidden) -> Finding:
    """A policy hides rows of a table from a role."""
    fact = f"row-level security hides rows of {found.table} from the role '{found.role}'"
    hidden = wrong(fact, command=f"{found.sql};", public="row-level security hides rows")
    return replace(hidden, public_command=DOCTOR)


def _partitions(facts: Facts) -> Finding:
    """Whether the API's rows of the next days have a partition."""
    found = facts.partitions
    if found is None:
        return ok("the log table is not partitioned by time")
    if found.until is None or found.has_default:
        return ok("every log row of the future has a partition")
    if found.left_check is not None:
        return _left_check(found.left_check, facts)
    fact = f"log rows from {instant(found.until)} on have no partition"
    left = (found.until - facts.at).total_seconds()
    command = "calc-analytics partitions --create" if found.step else "create the next partition of the log table"
    if found.created_by:
        command = "see why pg_partman creates no partitions: its maintenance, and its background worker's log"
    if left < PARTITION_SECONDS:
        return wrong(f"{fact}, so the API's INSERT will fail", command=command)
    if left < PARTITION_NOTE_SECONDS and not found.created_by:
        return note(fact, command=command)
    return ok(fact)


def _left_check(found: LeftCheck, facts: Facts) -> Finding:
    """The check that a script of `doctor --partitioning` added, before the exchange."""
    fact = f"the check {found.name} of an unfinished partitioning refuses log rows from {instant(found.until)} on"
    is_soon = (found.until - facts.at).total_seconds() < PARTITION_NOTE_SECONDS
    public = f"an unfinished partitioning refuses log rows from {instant(found.until)} on"
    return replace((wrong if is_soon else note)(fact, command=found.drop, public=public), public_command=DOCTOR)


def _freshness(facts: Facts) -> Finding:
    limit = FRESH_INTERVALS * facts.interval
    facts.ledger.require_usable()
    last = facts.ledger.refreshed
    if last is None or last.seconds_ago is None:
        return wrong("nothing was ever counted", command=f"{UP}, or calc-analytics refresh")
    fact = f"last counted {ago(last.seconds_ago)} ago; the limit is {ago(limit)}, twice the schedule's interval"
    return ok(fact) if last.seconds_ago <= limit else wrong(fact)


def _proofs(facts: Facts) -> Finding:
    """The worst class of days is the fact; the days of every class are problems."""
    ledger, kept = facts.ledger, len(facts.ledger.days)
    searched = facts.answers["unseen"]
    by_class = (_different(facts), _unbalanced(facts), _overflowing(facts), _waiting(facts))
    found = [each for each in by_class if each is not None]
    if found:
        problems: dict[str, Problem] = {}
        for problem in chain.from_iterable(each.problems for each in found):
            problems.setdefault(problem.subject, problem)
        return replace(found[0], problems=tuple(problems.values()), is_known=searched.answered)
    if not searched.answered:
        raise Unanswered(searched)
    built = max((days.by_status.get("built", 0) for days in ledger.days.values()), default=0)
    fact = f"no day differs; {number(built, 'day')} built in {number(kept, 'rollup')}"
    return ok(fact if facts.unseen.is_complete else f"{fact}; the search for days that are not on record was stopped")


def _different(facts: Facts) -> Finding | None:
    """Days that differ from the log or from what was counted."""
    days, kept = facts.ledger.different, len(facts.ledger.days)
    if not days:
        return None
    verb = "differs" if len(days) == 1 else "differ"
    fact = f"{number(len(days), 'day')} {verb} from the log or from what was counted: {_named(days, kept)}"
    return _of_days(fact, days, kept, "differs in {}", f"{VERIFY} --day {next(iter(days))}")


def _unbalanced(facts: Facts) -> Finding | None:
    """Days whose archived rows do not add up to what was counted."""
    days = {day: list(facts.ledger.days) for day in facts.ledger.unbalanced}
    if not days:
        return None
    fact = f"the archived rows of {number(len(days), 'day')} do not add up to what was counted: "
    detail = "has archived rows that do not add up to what was counted"
    return _of_days(
        fact + first_of(sorted(map(str, days))),
        days,
        len(facts.ledger.days),
        detail,
        f"{VERIFY} --day {next(iter(days))}",
    )


def _waiting(facts: Facts) -> Finding | None:
    """Days with log rows that were never counted whole, on record or not."""
    ledger, unseen = facts.ledger, facts.known("unseen")
    days = {**{day: list(ledger.days) for day in (unseen.days if unseen else [])}, **ledger.waiting}
    if not days:
        return None
    verb = "waits" if len(days) == 1 else "wait"
    fact = f"{number(len(days), 'day')} with log rows {verb} for a rebuild: {first_of(sorted(map(str, days)))}"
    fact += "; no statistic has all of their rows"
    return _of_days(fact, days, len(ledger.days), "waits for a rebuild in {}", "calc-analytics rollup")


def _overflowing(facts: Facts) -> Finding | None:
    """Days that are not counted because a value does not fit its column."""
    days, kept = facts.ledger.overflowing, len(facts.ledger.days)
    if not days:
        return None
    fact = f"{number(len(days), 'day')} set aside, because a value does not fit its column: {_named(days, kept)}"
    reason = "".join(f"; {misfit}" for misfit in facts.ledger.reasons[:1])
    command = f"{VERIFY} --day {next(iter(days))}"
    found = _of_days(fact + reason, days, kept, "is set aside in {}: a value does not fit its column", command)
    return replace(found, public=fact, code="overflow")


def _named(days: dict[Any, list[str]], kept: int) -> str:
    return first_of([f"{day} ({in_rollups(rollups, kept)})" for day, rollups in days.items()])


def _of_days(fact: str, days: dict[Any, list[str]], kept: int, detail: str, command: str) -> Finding:
    """Something is wrong with each of these days. `detail` has {} where its rollups are named."""
    problems = tuple(
        Problem(f"day {day}", detail.format(in_rollups(of, kept)), command=command, kind=detail)
        for day, of in days.items()
    )
    return replace(wrong(fact, command=command), problems=problems)


def _audit(facts: Facts) -> Finding:
    """Ages are measured up to the last refresh: while nothing is counted, other probes are red."""
    facts.ledger.require_usable()
    ages = facts.ledger.proofs
    if ages is None or not ages.days or ages.refreshed_at is None or ages.noted_since is None:
        return ok("no day is on record, so there is nothing to prove")
    audited = (ages.refreshed_at - (ages.audited_at or ages.noted_since)).total_seconds()
    last = f"all days were last audited {_since(facts, ages.audited_at)} ({_limit_of(AUDIT_SECONDS)})"
    if audited > AUDIT_SECONDS:
        return wrong(last, command=UP)
    if ages.recent_at and (ages.refreshed_at - ages.recent_at).total_seconds() > RECENT_AUDIT_SECONDS:
        recent = f"today and yesterday were last audited {_since(facts, ages.recent_at)}"
        return wrong(f"{recent} ({_limit_of(RECENT_AUDIT_SECONDS)})", command=VERIFY)
    if ages.oldest_proof_at is None:
        return ok(f"{last}; no day is built")
    limit = max(PROOF_SECONDS, ROUNDS * ages.round_seconds / PATROL_SHARE)
    fact = f"{last}; the oldest proof is {ago(facts.age(ages.oldest_proof_at) or 0.0)} old (limit {ago(limit)})"
    unproven = (ages.refreshed_at - max(ages.oldest_proof_at, ages.noted_since)).total_seconds()
    return ok(fact) if unproven <= limit else wrong(fact, command=VERIFY)


def _limit_of(seconds: float) -> str:
    return f"limit: {ago(seconds)} during which rows were counted"


def _daemon(facts: Facts) -> Finding:
    needed = [beat for beat in facts.daemons.heartbeats if beat.needed]
    if facts.daemons.is_alternating or len(facts.daemons.connected) > 1:
        named = f": {', '.join(facts.daemons.connected)}" if len(facts.daemons.connected) > 1 else ""
        return wrong(TWO_DAEMONS + named, command=STOP_ONE, public=TWO_DAEMONS, code="two_daemons")
    beats = ", ".join(f"{name_of(beat)} {_since(facts, beat.at)} (limit {_limit(beat)} s)" for beat in needed)
    alive = all(is_alive(beat, facts) for beat in needed)
    return ok(f"last heartbeats: {beats}") if alive else wrong(f"last heartbeats: {beats}", command=UP)


def name_of(beat: "Heartbeat") -> str:
    """The daemon's name for people: 'queued run coordinator'."""
    return beat.daemon.lower().replace("_", " ")


def is_alive(beat: "Heartbeat", facts: Facts) -> bool:
    """Whether the daemon missed fewer than two heartbeats."""
    age = facts.age(beat.at)
    return age is not None and age <= _limit(beat)


def _limit(beat: "Heartbeat") -> int:
    from calc_analytics.orchestration import history

    return HEARTBEATS_MISSED * history.HEARTBEAT_SECONDS.get(beat.daemon, 30)


def _sensor(facts: Facts) -> Finding:
    from calc_analytics.orchestration import history

    sensor = facts.instigators.get(history.SENSOR)
    found = _instigator(sensor, history.SENSOR, "sensor", facts)
    age = facts.age(sensor.started_at if sensor else None)
    if found.ok and (age is None or age > TICK_SECONDS):
        began = _since(facts, sensor.started_at if sensor else None)
        return wrong(f"its last tick began {began}; the limit is {TICK_SECONDS} s", command=UP)
    return found


def _schedule(facts: Facts) -> Finding:
    from calc_analytics.orchestration import history

    return _instigator(facts.instigators.get(history.SCHEDULE), history.SCHEDULE, "schedule", facts)


def _housekeeping(facts: Facts) -> Finding:
    """Off is a choice here: nothing depends on it for weeks; `doctor` notes it."""
    from calc_analytics.orchestration import history

    found = facts.instigators.get(history.HOUSEKEEPING)
    if found is None or not found.on:
        return ok(f"the schedule {history.HOUSEKEEPING} is not on")
    return _instigator(found, history.HOUSEKEEPING, "schedule", facts)


def _instigator(found: "Instigator | None", name: str, kind: str, facts: Facts) -> Finding:
    """The sensor or schedule is there, on, and does not keep failing."""
    if found is None:
        return wrong(f"the daemon has never registered the {kind} {name}", command=UP)
    if not found.on:
        return wrong(f"the {kind} {name} is turned off", command=f"dagster {kind} start {name}")
    tick = found.last_tick
    if tick is None:
        return ok(f"the {kind} {name} is on and has not ticked yet")
    if tick.failures_in_a_row >= FAILED_TICKS[kind]:
        last = "last tick" if tick.failures_in_a_row == 1 else f"last {tick.failures_in_a_row} ticks"
        public = f"the {last} of the {kind} {name} failed"
        return wrong(f"{public}: {tick.error}", command="calc-analytics doctor", public=public)
    return ok(f"the {kind} {name} is on; its last finished tick started {_since(facts, tick.at)}: {tick.status}")


def _checks(facts: Facts) -> Finding:
    failed = [check for check in facts.checks if not check.passed and not check.warning]
    warned = [check for check in facts.checks if not check.passed and check.warning]
    problems = tuple(
        Problem(
            f"check {check.name} of {each.day}",
            each.description,
            NOTE if each.warning else WRONG,
            is_posted=not check.is_advice,
        )
        for check in facts.checks
        for each in check.failed
    )
    if failed:
        public = "; ".join(f"{check.name} failed {_since(facts, check.at)}" for check in failed)
        found = wrong(f"{public}. {failed[0].description}", command=VERIFY, public=public)
    elif warned:
        fact = "; ".join(f"{check.name} warns: {check.description}" for check in warned)
        command = "" if all(check.is_advice for check in warned) else VERIFY
        found = note(fact, command=command, public="; ".join(f"{check.name} warns" for check in warned))
    else:
        found = ok(f"the last results of {len(facts.checks)} checks passed")
    return replace(found, problems=problems)


def _scheduled_run(facts: Facts) -> Finding:
    run = facts.runs.scheduled
    if run is None:
        return ok("no run of the schedule has ended yet")
    ended = "succeeded" if run.succeeded else "did not succeed"
    fact = f"the schedule's last run ({run.run_id[:8]}, {run.partition}) {ended} {_since(facts, run.ended_at)}"
    if run.succeeded or run.will_retry:
        return ok(fact + ("; Dagster starts it again" if run.will_retry else ""))
    return wrong(fact, command=f"open run {run.run_id} in the Dagster UI")


def _runs(facts: Facts) -> Finding:
    """Runs that failed, unless their days were rebuilt since, by a run or by the command line."""
    rebuilt, scheduled = facts.ledger.rebuilt, facts.runs.scheduled
    failed = [
        run
        for run in facts.runs.failed
        if not _is_made_good(run, rebuilt) and not (scheduled and run.run_id == scheduled.run_id)
    ]
    if not failed:
        return ok("no unresolved failed run in the last seven days")
    newest = failed[-1]
    problems = tuple(Problem(_subject(run), f"{run.error} (run {run.run_id[:8]})") for run in failed)
    public = f"{number(len(failed), 'run')} failed: {first_of([_subject(run) for run in reversed(failed)])}"
    command = f"open run {newest.run_id} in the Dagster UI"
    if newest.days:
        command = f"calc-analytics rollup --from {newest.days[0]} --to {newest.days[1]}"
    return replace(wrong(f"{public}. {newest.error}", command=command, public=public), problems=problems)


def _subject(run: "FailedRun") -> str:
    """'the rebuild of 2026-11-24', 'the rebuild of 2026-11-24 to 2026-11-26', 'job housekeeping'."""
    if run.days is None:
        return run.subject
    span = " to ".join(dict.fromkeys(map(str, run.days)))
    return f"{run.subject} {'on' if ' of ' in run.subject else 'of'} {span}"


def _is_made_good(run: "FailedRun", rebuilt: dict[Any, datetime]) -> bool:
    """Whether all its days were rebuilt after it failed, for example by the command line."""
    if run.days is None:
        return False
    days = [day for day in rebuilt if run.days[0] <= day <= run.days[1]]
    is_complete = len(days) == (run.days[1] - run.days[0]).days + 1
    return is_complete and all(rebuilt[day] > run.ended_at for day in days)


def _since(facts: Facts, at: datetime | None) -> str:
    age = facts.age(at)
    return "never" if age is None else f"{ago(age)} ago"


PROBES: dict[str, Probe] = {
    "database": Probe(_database, ("server",)),
    "tables": Probe(_tables, ("is_installed",), ("database",)),
    "state": Probe(_state, ("ledger", "hidden", "log"), ("database",)),
    "partitions": Probe(_partitions, ("partitions",), ("database",)),
    "freshness": Probe(_freshness, ("interval", "ledger"), ("database",)),
    "proofs": Probe(_proofs, ("ledger", "unseen"), ("database",)),
    "audit": Probe(_audit, ("ledger",), ("database",)),
    "daemon": Probe(_daemon, ("daemons",)),
    "sensor": Probe(_sensor, ("instigators",), ("daemon",)),
    "schedule": Probe(_schedule, ("instigators",), ("daemon",)),
    "housekeeping": Probe(_housekeeping, ("instigators",), ("daemon",)),
    "checks": Probe(_checks, ("checks",), ("daemon",)),
    "scheduled_run": Probe(_scheduled_run, ("runs",), ("daemon",)),
    "runs": Probe(_runs, ("runs", "ledger"), ("daemon", "database")),
}
NEEDED = tuple(dict.fromkeys(group for probe in PROBES.values() for group in probe.groups))
RUNNING = ("daemon", "sensor", "schedule")
