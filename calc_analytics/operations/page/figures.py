"""What the page shows besides the health report, asked within the prober's deadline."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from functools import partial
from typing import Any

from calc_analytics import days
from calc_analytics.operations.page.calendar import last_day, shift_months
from calc_analytics.operations.probes import Answer, Prober, Question
from calc_analytics.operations.sources import Sources
from calc_analytics.rollup import diagnosis, journal, overview, status
from calc_analytics.rollup.database import Database

LAG_HOURS = 6
# The calendar shows this month and the twelve before it.
MONTHS = 13


@dataclass(frozen=True)
class Figures:
    """The answers, each of which may be missing, and the moment for which they were asked."""

    now: datetime
    today: date
    overview: Answer[overview.Overview]
    proofs: Answer[diagnosis.ProofAges]
    lag: Answer[status.Lag]
    ages: Answer[list[journal.Freshness]]

    @property
    def since(self) -> datetime:
        """The whole minute in which the lag's chart begins."""
        return chart_begin(self.now)

    @property
    def first(self) -> date:
        """The first day of the calendar."""
        return calendar_range(self.today)[0]

    @property
    def last(self) -> date:
        """The last day of the calendar, which may lie in the future."""
        return calendar_range(self.today)[1]


def figures(sources: Sources, prober: Prober) -> Figures:
    """Asks all of it at once and returns within the deadline, whatever is down."""
    now = datetime.now(timezone.utc)
    today = days.today(sources.settings.timezone, now)
    questions: dict[str, Question] = {
        "page overview": partial(sources.ask, _overview, today),
        "page proofs": partial(sources.ask, diagnosis.proof_ages),
        "page ages": partial(sources.ask, journal.freshness, chart_begin(now)),
        "lag": partial(sources.ask, status.lag),
    }
    answers = prober.ask(questions)
    return Figures(now, today, answers["page overview"], answers["page proofs"], answers["lag"], answers["page ages"])


def chart_begin(now: datetime) -> datetime:
    """LAG_HOURS before the end of this minute."""
    return now.replace(second=0, microsecond=0) + timedelta(minutes=1) - timedelta(hours=LAG_HOURS)


def calendar_range(today: date) -> tuple[date, date]:
    """The first and the last day of the calendar."""
    return shift_months(today, 1 - MONTHS), last_day(today)


def _overview(db: Database, today: date) -> Any:
    return overview.overview(db, *calendar_range(today), today)
