"""What the page shows besides the health report: a part of the facts that health is made of, and two questions more."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any

from calc_analytics import days
from calc_analytics.operations.disclosure import cause_of
from calc_analytics.operations.facts import Facts
from calc_analytics.operations.page.calendar import last_day, shift_months
from calc_analytics.operations.probes import Answer, Question
from calc_analytics.operations.sources import Sources
from calc_analytics.rollup import journal, overview, status

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
    unseen: Answer[list[date]]
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


def questions(sources: Sources, now: datetime) -> dict[str, Question]:
    """What the page asks beside the facts of health, in the same request: `now` is the instant of both."""
    today = days.today(sources.settings.timezone, now)
    return {
        "page overview": lambda: overview.overview(sources.database(), *calendar_range(today), today),
        "page ages": lambda: journal.freshness(sources.database(), chart_begin(now)),
    }


def figures(facts: Facts) -> Figures:
    """The page's figures from the facts of health and the answers to `questions`."""
    answers, unseen = facts.answers, facts.known("unseen") or []
    return Figures(
        facts.at,
        days.today(facts.settings.timezone, facts.at),
        _part(answers["page overview"], lambda found: found.with_unseen(unseen)),
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
