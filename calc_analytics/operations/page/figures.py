"""What the page shows besides the health report: a part of the facts that health is made of, and two more."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any

from calc_analytics import days
from calc_analytics.config import Settings
from calc_analytics.operations.disclosure import cause_of
from calc_analytics.operations.facts import Facts, Readers
from calc_analytics.operations.page.calendar import last_day, shift_months
from calc_analytics.operations.probes import Answer
from calc_analytics.rollup import journal, overview, status
from calc_analytics.rollup.unseen import SearchReport

LAG_HOURS = 6
# The calendar shows this month and the twelve before it.
MONTHS = 13


@dataclass(frozen=True)
class Figures:
    """The answers, each of which may be missing, and the moment for which they were asked.

    The overview has the unseen days that are known.
    """

    now: datetime
    today: date
    overview: Answer[overview.Overview]
    unseen: Answer[SearchReport]
    proofs: Answer[status.ProofAges]
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


def readers(settings: Settings, now: datetime) -> dict[str, Readers]:
    """What the page reads beside the facts of health, in the same request: `now` is the instant of both."""
    today = days.today(settings.timezone, now)
    return {
        "tables": {
            "page overview": lambda db: overview.overview(db, *calendar_range(today), today),
            "page ages": lambda db: journal.freshness(db, chart_begin(now)),
        }
    }


def figures(facts: Facts) -> Figures:
    """The page's figures from the facts of health and the answers to `readers`."""
    answers, unseen = facts.answers, facts.known("unseen")
    return Figures(
        facts.at,
        days.today(facts.settings.timezone, facts.at),
        _part(answers["page overview"], lambda found: found.with_unseen(unseen.days if unseen else [])),
        answers["unseen"],
        _proofs(answers["ledger"]),
        _part(answers["log"], lambda log: log.lag),
        answers["page ages"],
    )


def _part(answer: Answer[Any], part: Callable[[Any], Any]) -> Answer[Any]:
    return replace(answer, value=part(answer.value)) if answer.answered else answer


def _proofs(answer: Answer[status.LedgerReport]) -> Answer[status.ProofAges]:
    """None of them is known where the state cannot be used."""
    error = answer.value.error if answer.value else None
    if error is not None:
        return Answer(None, str(error), answer.seconds, cause_of(error))
    return _part(answer, lambda ledger: ledger.proofs)


def chart_begin(now: datetime) -> datetime:
    """LAG_HOURS before the end of this minute."""
    return now.replace(second=0, microsecond=0) + timedelta(minutes=1) - timedelta(hours=LAG_HOURS)


def calendar_range(today: date) -> tuple[date, date]:
    """The first and the last day of the calendar."""
    return shift_months(today, 1 - MONTHS), last_day(today)
