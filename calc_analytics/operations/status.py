"""The status report: what is fresh, what lags, which transactions are open, and health, from the same facts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any

from calc_analytics.database.writers import Writer
from calc_analytics.operations import facts as facts_
from calc_analytics.operations import health
from calc_analytics.operations.facts import Facts
from calc_analytics.operations.probes import Prober
from calc_analytics.operations.sources import Sources
from calc_analytics.operations.words import instant
from calc_analytics.rollup import status
from calc_analytics.rollups import chosen_log

# The groups of facts behind each key of the JSON.
GROUPS = {
    "refreshed": "ledger", "days": "ledger", "different": "ledger", "lag": "log", "writers": "writers",
    "interval": "interval", "recent": "recent", "heartbeats": "daemons", "url": "url",
}  # fmt: skip


@dataclass(frozen=True)
class Status:
    """Everything that was answered, for the rollups that are `chosen`. What was not is None; `errors` says why."""

    facts: Facts
    health: health.Health
    chosen: tuple[str, ...]

    @property
    def at(self) -> datetime:
        """When the facts were read, by this machine's clock."""
        return self.facts.at

    @property
    def database(self) -> str | None:
        """The database's URL, without its password."""
        return self.facts.known("url")

    @property
    def timezone(self) -> str:
        """The reporting time zone."""
        return self.facts.settings.timezone

    @property
    def ledger(self) -> status.LedgerReport | None:
        """What the ledger says, of all rollups."""
        return self.facts.known("ledger")

    @property
    def refreshed(self) -> status.LastRefresh | None:
        """When rows were last counted."""
        return self.ledger.refreshed if self.ledger else None

    @property
    def lag(self) -> status.Lag | None:
        """What is not counted yet."""
        log: status.LogReport | None = self.facts.known("log")
        return log.lag if log else None

    @property
    def days(self) -> dict[str, status.Days] | None:
        """Sums over the days on record, per rollup."""
        return {name: self.ledger.days[name] for name in self.chosen} if self.ledger else None

    @property
    def different(self) -> dict[date, list[str]] | None:
        """The days that differ, with their rollups."""
        if self.ledger is None:
            return None
        of_day = {day: [name for name in each if name in self.chosen] for day, each in self.ledger.different.items()}
        return {day: each for day, each in of_day.items() if each}

    @property
    def recent(self) -> list[status.DayStatus] | None:
        """The last days on record, a row for each rollup."""
        days: list[status.DayStatus] | None = self.facts.known("recent")
        return None if days is None else [day for day in days if day.rollup in self.chosen]

    @property
    def writers(self) -> list[Writer] | None:
        """The open transactions that have written."""
        return self.facts.known("writers")

    @property
    def together(self) -> status.Days:
        """The sums over all chosen rollups."""
        return status.together((self.days or {}).values())

    @property
    def errors(self) -> dict[str, str]:
        """Why a part is not known."""
        answers = {name: self.facts.answers[group] for name, group in GROUPS.items()}
        errors = {name: str(answer.error) for name, answer in answers.items() if not answer.answered}
        return {**errors, **({"refreshed": str(self.ledger.error)} if self.ledger and self.ledger.error else {})}

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        daemons: facts_.Daemons | None = self.facts.known("daemons")
        return {
            "at": instant(self.at),
            "database": self.database,
            "timezone": self.timezone,
            "health": self.health.as_dict(),
            "schedule_interval_seconds": self.facts.known("interval"),
            "lag": asdict(self.lag) if self.lag else None,
            "last": _plain({"refresh": self.refreshed.at if self.refreshed else None, **_instants(self.together)}),
            "days": self.days and {name: _sums(days) for name, days in self.days.items()},
            "difference": None if self.days is None else self.together.difference,
            "different_days": self.different and {str(day): names for day, names in self.different.items()},
            "recent_days": _plain([{**asdict(day), "word": day.word} for day in self.recent or []]),
            "open_transactions": [asdict(writer) for writer in self.writers or []],
            "heartbeats": [
                {
                    "daemon": beat.daemon,
                    "at": _plain(beat.at),
                    "needed": beat.needed,
                    "alive": health.is_alive(beat, self.facts),
                }
                for beat in (daemons.heartbeats if daemons else [])
            ],
            "errors": self.errors,
        }


def report(sources: Sources, prober: Prober, recent_days: int, rollups: Sequence[str] = ()) -> Status:
    """Reads all of it at once and returns within the prober's deadline; with `rollups` days of these alone.

    Raises `UnknownRollup` for a rollup that is not kept.
    """
    names = chosen_log(sources.settings.rollups).only(rollups or None).names
    more = {"tables": {"recent": lambda db: status.recent_days(db, recent_days)}}
    facts = facts_.read(sources, prober, (*health.NEEDED, "writers", "url"), more)
    return Status(facts, health.report(facts), tuple(names))


def _instants(days: status.Days) -> dict[str, datetime | None]:
    """When a day was last rebuilt, compared and audited, and since when some day has no proof."""
    return {
        "rebuild": days.rebuilt_at,
        "verify": days.verified_at,
        "audit": days.audited_at,
        "oldest_proof": days.oldest_proof_at,
    }


def _sums(days: status.Days) -> dict[str, Any]:
    """The days of one rollup for JSON."""
    counts = {"pruned": days.pruned, "different": days.different, "difference": days.difference}
    return {**days.by_status, **counts, "unproven": days.unproven, "last": _plain(_instants(days))}


def _plain(value: Any) -> Any:
    """Instants and days as text."""
    match value:
        case datetime():
            return instant(value)
        case list():
            return [_plain(each) for each in value]
        case dict():
            return {name: _plain(each) for name, each in value.items()}
        case None | bool() | int() | float() | str():
            return value
        case other:
            return str(other)
