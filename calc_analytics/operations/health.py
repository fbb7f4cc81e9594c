"""The health report: are the rollups kept up to date, and are they right? One finding per probe, with what it compared.

The same report answers `GET /health/rollup`, the gauges of `/metrics` and the head of `calc-analytics status`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import date, datetime, timezone
from functools import partial
from typing import Any

from calc_analytics import __version__
from calc_analytics.operations.disclosure import NO_ANSWER, Cause
from calc_analytics.operations.probes import Answer, Prober, Question
from calc_analytics.operations.sources import Sources
from calc_analytics.operations.words import USE_THE_PRIMARY, ago, first_of, in_rollups, instant
from calc_analytics.plurals import number
from calc_analytics.rollup import diagnosis, install, ledger, overflow, status
from calc_analytics.rollup.database import Database

# Dagster's daemons write a heartbeat every 30 seconds; the scheduler sleeps from minute to minute. Two that are missing
# tell of a death.
HEARTBEAT_SECONDS = {"SENSOR": 30, "QUEUED_RUN_COORDINATOR": 30, "SCHEDULER": 60}
HEARTBEATS_MISSED = 2
TWO_DAEMONS = "two of Dagster's daemons run at once, so that ticks and runs come twice"
STOP_ONE = "stop one of them: 'dagster dev' beside 'calc-analytics up', or a second 'up' on another machine"
# The sensor begins a tick every ten seconds; one that has much to count may take longer.
TICK_SECONDS = 60
RED_TICKS = 2
FRESH_INTERVALS = 2
# All days are audited every hour; three hours without are two audits that failed.
AUDIT_SECONDS = 3 * 3600.0
# Today and yesterday are audited every minute.
RECENT_AUDIT_SECONDS = 600.0
# The day with the oldest proof is compared with the log within 1 % of the time, so one round over all days takes a
# hundred times as long as comparing them. Eight days are a round of two hours of comparing, and the weekend in which
# nothing ran; a log that needs more has twice its round.
PROOF_SECONDS = 8 * 86_400.0
ROUNDS, PATROL_SHARE = 2, 0.01


@dataclass(frozen=True)
class Verdict:
    """Whether something is as it should be, what was compared, and the command for where it is not.

    `public` is what anybody may read over HTTP, if that is less than `compared`; `code` is for programs.
    """

    ok: bool
    compared: str
    command: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    public: str = ""
    code: str | None = None


@dataclass(frozen=True)
class Finding:
    """A probe's verdict, with its name and how long it took to answer. `public` and `code` as in `Verdict`."""

    name: str
    ok: bool
    compared: str
    next_command: str | None
    seconds: float
    public: str
    code: str | None = None

    def as_dict(self, compared: str) -> dict[str, Any]:
        """Plain values for JSON, with that text of what was compared."""
        values = {name: value for name, value in asdict(self).items() if name != "public"}
        return {**values, "compared": compared, "seconds": round(self.seconds, 4)}


@dataclass(frozen=True)
class Health:
    """All findings. `running`: the daemon, its sensor and its schedule; `healthy`: everything."""

    at: datetime
    findings: list[Finding]
    last_run: str | None = None

    @property
    def healthy(self) -> bool:
        """Whether every probe found what it should."""
        return all(finding.ok for finding in self.findings)

    @property
    def running(self) -> bool:
        """Whether rows are counted and days rebuilt automatically."""
        return all(finding.ok for finding in self.findings if finding.name in RUNNING)

    @property
    def wrong(self) -> list[Finding]:
        """What is not as it should be."""
        return [finding for finding in self.findings if not finding.ok]

    def as_dict(self) -> dict[str, Any]:
        """Everything, for `status --json`."""
        return self._as_dict([finding.as_dict(finding.compared) for finding in self.findings])

    def public(self) -> dict[str, Any]:
        """The `data` of `GET /health/rollup`, which anybody may read."""
        return self._as_dict([finding.as_dict(finding.public) for finding in self.findings])

    def _as_dict(self, probes: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "status": "ok" if self.healthy else "unhealthy",
            "running": self.running,
            "healthy": self.healthy,
            "last_run": self.last_run,
            "checked_at": instant(self.at),
            "version": __version__,
            "probes": probes,
        }


def health(sources: Sources, prober: Prober) -> Health:
    """Asks every probe and returns within the prober's deadline."""
    return report(prober.ask(questions(sources)))


def questions(sources: Sources) -> dict[str, Question]:
    """The probes, ready to be asked."""
    return {name: partial(probe, sources) for name, probe in PROBES.items()}


def report(answers: Mapping[str, Answer[Verdict]]) -> Health:
    """The health report from the probes' answers; others among the answers are left aside."""
    fresh = answers["freshness"].value
    return Health(
        at=datetime.now(timezone.utc),
        findings=_each_cause_once([_finding(name, answers[name]) for name in PROBES]),
        last_run=fresh.facts["refreshed_at"] if fresh else None,
    )


def _finding(name: str, answer: Answer[Verdict]) -> Finding:
    if answer.value is None:
        cause = answer.cause or Cause("internal_error", "internal error")
        return Finding(name, False, answer.trouble or "", cause.command, answer.seconds, cause.words, cause.code)
    verdict = answer.value
    command = None if verdict.ok else verdict.command or "calc-analytics status"
    public = verdict.public or verdict.compared
    return Finding(name, verdict.ok, verdict.compared, command, answer.seconds, public, verdict.code)


def _each_cause_once(findings: list[Finding]) -> list[Finding]:
    """The findings, of which the first alone says what several have in common; the others name that one."""
    first: dict[str, str] = {}
    found = []
    for each in findings:
        named = each.name if each.code in (None, NO_ANSWER) else first.setdefault(str(each.code), each.name)
        found.append(each if named == each.name else replace(each, public=f"not known: see the probe {named}"))
    return found


def _database(sources: Sources) -> Verdict:
    # On a connection of its own: it answers while every other one waits for a lock.
    server = status.server(sources.engine("calc_analytics probe"))
    said, public = f"PostgreSQL {server.version} answered", "the database answered"
    if server.read_only:
        but = ", but it is read-only (a standby?): nothing can be counted"
        return Verdict(False, said + but, USE_THE_PRIMARY, public=public + but, code="read_only")
    return Verdict(True, said, public=public)


def _tables(sources: Sources) -> Verdict:
    if install.is_installed(sources.database()):
        return Verdict(True, "tables, views and migrations are there")
    said = "the newest migration has not run, or ROLLUPS names other rollups than those that are kept"
    return Verdict(False, said, "calc-analytics migrate", code="not_installed")


def _state(sources: Sources) -> Verdict:
    db = sources.database()
    status.refreshed(db)
    for each in diagnosis.hidden(db):
        return Verdict(
            False, f"row-level security hides rows of {each.table} from the role '{each.role}'", f"{each.sql};"
        )
    diagnosis.require_own_rows(db)
    kept = number(len(db.log.rollups), "rollup")
    return Verdict(True, f"the stored snapshot is this cluster's; {kept}, days in {db.timezone}")


def schedule_seconds(sources: Sources) -> float:
    """The longest time between two runs of the schedule."""
    from calc_analytics.orchestration.cron import longest_pause

    return longest_pause(sources.settings.cron).total_seconds()


def _freshness(sources: Sources) -> Verdict:
    limit = FRESH_INTERVALS * schedule_seconds(sources)
    last = status.refreshed(sources.database())
    facts = {"refreshed_at": instant(last.at) if last.at else None}
    against = f"the limit is {ago(limit)}, twice the schedule's interval"
    if last.seconds_ago is None:
        return Verdict(False, "nothing was ever counted", "calc-analytics up, or calc-analytics refresh", facts)
    said = f"last counted {ago(last.seconds_ago)} ago; {against}"
    return Verdict(last.seconds_ago <= limit, said, "calc-analytics status", facts)


def _proofs(sources: Sources) -> Verdict:
    db = sources.database()
    different = status.different_days(db)
    if different:
        said = f"{number(len(different), 'day')} {'differs' if len(different) == 1 else 'differ'} from the log or from "
        kept = len(db.log.rollups)
        named = first_of([f"{day} ({in_rollups(rollups, kept)})" for day, rollups in different.items()])
        return Verdict(
            False, f"{said}what was counted: {named}", f"calc-analytics verify --day {next(iter(different))}"
        )
    if verdict := _set_aside(db):
        return verdict
    if waiting := _waiting_days(sources):
        verb = "waits" if len(waiting) == 1 else "wait"
        said = f"{number(len(waiting), 'day')} with log rows {verb} for a rebuild: {first_of(list(map(str, waiting)))}"
        return Verdict(False, f"{said}; no statistic has all of their rows", "calc-analytics rollup")
    built = max((days.by_status.get("built", 0) for days in status.days(db).values()), default=0)
    return Verdict(True, f"no day differs; {number(built, 'day')} built in {number(len(db.log.rollups), 'rollup')}")


def _set_aside(db: Database) -> Verdict | None:
    """The days that are not counted because a value does not fit its column; None if there are none."""
    days = ledger.days_by_status(db, ["overflow"])
    if not days:
        return None
    named = first_of([f"{day} ({in_rollups(rollups, len(db.log.rollups))})" for day, rollups in days.items()])
    said = f"{number(len(days), 'day')} set aside, because a value does not fit its column: {named}"
    why = "".join(f"; {misfit}" for misfit in overflow.known(db)[:1])
    return Verdict(False, said + why, f"calc-analytics verify --day {next(iter(days))}", public=said, code="overflow")


def _waiting_days(sources: Sources) -> list[date]:
    """Days that were never counted whole: those on record, and those that nobody has recorded yet."""
    db = sources.database()
    return sorted({*ledger.waiting_days(db), *sources.search.days(db)})


def _audit(sources: Sources) -> Verdict:
    """Ages are measured up to the last refresh: while nothing is counted, other probes are red."""
    ages = diagnosis.proof_ages(sources.database())
    if not ages.days or ages.refreshed_at is None or ages.noted_since is None:
        return Verdict(True, "no day is on record, so there is nothing to prove")
    audited = (ages.refreshed_at - (ages.audited_at or ages.noted_since)).total_seconds()
    last = f"all days were last audited {_since(_age(ages.audited_at))} (limit {ago(AUDIT_SECONDS)} of counting)"
    if audited > AUDIT_SECONDS:
        return Verdict(False, last, "calc-analytics up")
    if ages.recent_at and (ages.refreshed_at - ages.recent_at).total_seconds() > RECENT_AUDIT_SECONDS:
        recent = f"today and yesterday were last audited {_since(_age(ages.recent_at))}"
        return Verdict(False, f"{recent} (limit {ago(RECENT_AUDIT_SECONDS)} of counting)", "calc-analytics verify")
    if ages.oldest_proof_at is None:
        return Verdict(True, f"{last}; no day is built")
    limit = max(PROOF_SECONDS, ROUNDS * ages.round_seconds / PATROL_SHARE)
    said = f"{last}; the oldest proof is {ago(_age(ages.oldest_proof_at) or 0.0)} old (limit {ago(limit)})"
    unproven = (ages.refreshed_at - max(ages.oldest_proof_at, ages.noted_since)).total_seconds()
    return Verdict(unproven <= limit, said, "calc-analytics verify")


def _daemon(sources: Sources) -> Verdict:
    from calc_analytics.orchestration import history

    dagster = sources.dagster()
    needed = [beat for beat in history.heartbeats(dagster) if beat.needed]
    connected = history.daemons(dagster)
    if sources.heartbeat_ids.take_turns(needed) or len(connected) > 1:
        named = f": {', '.join(connected)}" if len(connected) > 1 else ""
        return Verdict(False, TWO_DAEMONS + named, STOP_ONE, public=TWO_DAEMONS, code="two_daemons")
    dead = [beat.daemon for beat in needed if not is_alive(beat)]
    said = ", ".join(f"{name_of(beat)} {_since(_age(beat.at))} (limit {_limit(beat)} s)" for beat in needed)
    return Verdict(not dead, f"last heartbeats: {said}", "calc-analytics up")


def name_of(beat: Any) -> str:
    """The daemon's name for people: 'queued run coordinator'."""
    return str(beat.daemon).lower().replace("_", " ")


def is_alive(beat: Any) -> bool:
    """Whether the daemon of this `history.Heartbeat` missed fewer than two."""
    age = _age(beat.at)
    return age is not None and age <= _limit(beat)


def _limit(beat: Any) -> int:
    return HEARTBEATS_MISSED * HEARTBEAT_SECONDS.get(beat.daemon, 30)


def _sensor(sources: Sources) -> Verdict:
    from calc_analytics.orchestration import history

    found = history.sensor(sources.dagster())
    verdict = _instigator(found, history.SENSOR, "sensor")
    age = _age(found.started_at if found else None)
    if verdict.ok and (age is None or age > TICK_SECONDS):
        return Verdict(False, f"its last tick began {_since(age)}; the limit is {TICK_SECONDS} s", "calc-analytics up")
    return verdict


def _schedule(sources: Sources) -> Verdict:
    from calc_analytics.orchestration import history

    return _instigator(history.schedule(sources.dagster()), history.SCHEDULE, "schedule")


def _instigator(found: Any, name: str, kind: str) -> Verdict:
    """The `history.Instigator` is there, on, and does not keep failing."""
    if found is None:
        return Verdict(False, f"no daemon has ever seen the {kind} {name}", "calc-analytics up")
    if not found.on:
        return Verdict(False, f"the {kind} {name} is turned off", f"dagster {kind} start {name}")
    tick = found.last_tick
    if tick is None:
        return Verdict(True, f"the {kind} {name} is on and has not ticked yet")
    if tick.failures_in_a_row >= RED_TICKS:
        said = f"the last {tick.failures_in_a_row} ticks of the {kind} {name} failed"
        return Verdict(False, f"{said}: {tick.error}", "calc-analytics doctor", public=said)
    return Verdict(
        True, f"the {kind} {name} is on; the last tick that ended began {_since(_age(tick.at))}: {tick.status}"
    )


def _checks(sources: Sources) -> Verdict:
    from calc_analytics.orchestration import history

    results = history.last_checks(sources.dagster())
    failed = [check for check in results if not check.passed and not check.warning]
    warned = [check for check in results if not check.passed and check.warning]
    if failed:
        said = "; ".join(f"{check.name} failed {_since(_age(check.at))}" for check in failed)
        return Verdict(False, f"{said}. {failed[0].description}", "calc-analytics verify", public=said)
    said = "; ".join(f"{check.name} warns: {check.description}" for check in warned)
    public = "; ".join(f"{check.name} warns" for check in warned)
    return Verdict(True, said or f"the last results of {len(results)} checks passed", public=public)


def _last_run(sources: Sources) -> Verdict:
    from calc_analytics.orchestration import history

    run = history.last_run(sources.dagster())
    if run is None:
        return Verdict(True, "no run of the schedule has ended yet")
    ended = "succeeded" if run.succeeded else "did not succeed"
    said = f"the schedule's last run ({run.run_id[:8]}, {run.partition}) {ended} {_since(_age(run.ended_at))}"
    return Verdict(run.succeeded, said, f"open run {run.run_id} in the Dagster UI")


def _age(at: datetime | None) -> float | None:
    return None if at is None else max((datetime.now(timezone.utc) - at).total_seconds(), 0.0)


def _since(age: float | None) -> str:
    return "never" if age is None else f"{ago(age)} ago"


PROBES: dict[str, Callable[[Sources], Verdict]] = {
    "database": _database,
    "tables": _tables,
    "state": _state,
    "freshness": _freshness,
    "proofs": _proofs,
    "audit": _audit,
    "daemon": _daemon,
    "sensor": _sensor,
    "schedule": _schedule,
    "checks": _checks,
    "last_run": _last_run,
}
RUNNING = ("daemon", "sensor", "schedule")
