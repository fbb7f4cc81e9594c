"""The status report: what is fresh, what lags, who holds an old transaction, and the health report with it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime, timezone
from functools import partial
from typing import Any

from calc_analytics.config import redact_url
from calc_analytics.operations import health
from calc_analytics.operations.probes import Answer, Prober, Question
from calc_analytics.operations.sources import Sources
from calc_analytics.operations.words import instant
from calc_analytics.rollup import status
from calc_analytics.rollups import chosen_log

Answers = Mapping[str, Answer[Any]]


@dataclass(frozen=True)
class Status:
    """Everything that was answered. Fields are None where nothing was, and `trouble` says why.

    `days` are sums per rollup, `different` the days that differ with their rollups, `recent` the last days on record,
    a row for each rollup.
    """

    at: datetime
    database: str | None
    timezone: str
    health: health.Health
    refreshed: status.Refreshed | None
    lag: status.Lag | None
    days: dict[str, status.Days] | None
    different: dict[date, list[str]] | None
    recent: list[status.DayStatus] | None
    writers: list[status.Writer] | None
    interval: float | None
    heartbeats: list[Any] | None
    trouble: dict[str, str]

    @property
    def together(self) -> status.Days:
        """The sums over all rollups."""
        return status.together((self.days or {}).values())

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "at": instant(self.at),
            "database": self.database,
            "timezone": self.timezone,
            "health": self.health.as_dict(),
            "schedule_interval_seconds": self.interval,
            "lag": asdict(self.lag) if self.lag else None,
            "last": _plain({"refresh": self.refreshed.at if self.refreshed else None, **_instants(self.together)}),
            "days": self.days and {name: _sums(days) for name, days in self.days.items()},
            "difference": None if self.days is None else self.together.difference,
            "different_days": self.different and {str(day): names for day, names in self.different.items()},
            "recent_days": _plain([{**asdict(day), "word": day.word} for day in self.recent or []]),
            "open_transactions": [asdict(writer) for writer in self.writers or []],
            "heartbeats": [
                {"daemon": beat.daemon, "at": _plain(beat.at), "needed": beat.needed, "alive": health.is_alive(beat)}
                for beat in self.heartbeats or []
            ],
            "trouble": self.trouble,
        }


def report(sources: Sources, prober: Prober, recent_days: int, rollups: Sequence[str] = ()) -> Status:
    """Asks all of it at once and returns within the prober's deadline; with `rollups` days of these alone.

    Raises `UnknownRollup` for a rollup that is not kept.
    """
    names = chosen_log(sources.settings.rollups).only(rollups or None).names
    own: dict[str, Question] = {
        **figures(sources),
        "different": partial(sources.ask, status.different_days),
        "recent": partial(sources.ask, status.recent_days, recent_days),
        "heartbeats": partial(_heartbeats, sources),
        "url": partial(_shown_url, sources),
    }
    answers = prober.ask({**health.questions(sources), **own})
    values = {name: answers[name].value for name in own}
    found = Status(
        at=datetime.now(timezone.utc),
        database=values.pop("url"),
        timezone=sources.settings.timezone,
        health=health.report(answers),
        trouble={name: str(answers[name].trouble) for name in own if not answers[name].answered},
        **values,
    )
    return _only(found, names) if rollups else found


def figures(sources: Sources) -> dict[str, Question]:
    """What is known beyond the health report; the gauges of `/metrics` ask the same."""
    return {
        "refreshed": partial(sources.ask, status.refreshed),
        "lag": partial(sources.ask, status.lag),
        "days": partial(sources.ask, status.days),
        "writers": partial(sources.ask, status.writers),
        "interval": partial(health.schedule_seconds, sources),
    }


def _only(found: Status, names: Sequence[str]) -> Status:
    """The report with the days of these rollups alone."""
    different = {day: [name for name in each if name in names] for day, each in (found.different or {}).items()}
    return replace(
        found,
        days=found.days and {name: days for name, days in found.days.items() if name in names},
        different=found.different and {day: each for day, each in different.items() if each},
        recent=found.recent and [day for day in found.recent if day.rollup in names],
    )


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


def _shown_url(sources: Sources) -> str:
    return redact_url(sources.url())


def _heartbeats(sources: Sources) -> Any:
    from calc_analytics.orchestration import history

    return history.heartbeats(sources.dagster())


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
