"""The status report: what is fresh, what lags, who holds an old transaction, and the health report with it."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from typing import Any

from calc_analytics.config import shown
from calc_analytics.rollup import status
from calc_analytics.rollup.declaration import CALCULATION_STATS_DAILY as ROLLUP
from calc_analytics.service import health
from calc_analytics.service.probes import Answer, Prober, Question
from calc_analytics.service.sources import Sources
from calc_analytics.service.words import instant

Answers = Mapping[str, Answer[Any]]


@dataclass(frozen=True)
class Status:
    """Everything that was answered. Fields are None where nothing was, and `trouble` says why."""

    at: datetime
    database: str | None
    timezone: str
    health: health.Health
    refreshed: status.Refreshed | None
    lag: status.Lag | None
    days: status.Days | None
    recent: list[status.DayStatus] | None
    writers: list[status.Writer] | None
    interval: float | None
    heartbeats: list[Any] | None
    trouble: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        days = self.days or status.Days()
        at = {
            "refresh": self.refreshed.at if self.refreshed else None,
            "rebuild": days.rebuilt_at,
            "verify": days.verified_at,
        }
        return {
            "at": instant(self.at),
            "database": self.database,
            "timezone": self.timezone,
            "health": self.health.as_dict(),
            "schedule_interval_seconds": self.interval,
            "lag": asdict(self.lag) if self.lag else None,
            "last": {name: _plain(value) for name, value in at.items()},
            "days": None if self.days is None else {**days.by_status, "sealed": days.sealed},
            "difference": None if self.days is None else days.difference,
            "recent_days": _plain([asdict(day) for day in self.recent or []]),
            "open_transactions": [asdict(writer) for writer in self.writers or []],
            "heartbeats": [
                {"daemon": beat.daemon, "at": _plain(beat.at), "needed": beat.needed, "alive": health.is_alive(beat)}
                for beat in self.heartbeats or []
            ],
            "trouble": self.trouble,
        }


def report(sources: Sources, prober: Prober, recent_days: int) -> Status:
    """Asks all of it at once and returns within the prober's deadline."""
    recent = partial(_about, sources, lambda engine, rollup: status.recent_days(engine, rollup, recent_days))
    beats = partial(_heartbeats, sources)
    url = partial(_shown_url, sources)
    own: dict[str, Question] = {**figures(sources), "recent": recent, "heartbeats": beats, "url": url}
    answers = prober.ask({**health.questions(sources), **own})
    values = {name: answers[name].value for name in own}
    return Status(
        at=datetime.now(timezone.utc),
        database=values.pop("url"),
        timezone=sources.settings.timezone,
        health=health.report(answers),
        trouble={name: str(answers[name].trouble) for name in own if not answers[name].answered},
        **values,
    )


def figures(sources: Sources) -> dict[str, Question]:
    """What is known beyond the health report; the gauges of `/metrics` ask the same."""
    zone = sources.settings.timezone
    return {
        "refreshed": partial(_about, sources, partial(status.refreshed, timezone=zone)),
        "lag": partial(_about, sources, partial(status.lag, timezone=zone)),
        "days": partial(_about, sources, status.days),
        "writers": partial(_about, sources, status.writers),
        "interval": partial(health.schedule_seconds, sources),
    }


def _about(sources: Sources, question: Callable[..., Any]) -> Any:
    return question(sources.engine(), ROLLUP)


def _shown_url(sources: Sources) -> str:
    return shown(sources.url())


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
