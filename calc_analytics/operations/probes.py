"""Asks several questions at once, each in a thread of its own, with one deadline for all.

A question that hangs is answered by "no answer". Concurrent callers share the question already in flight. After a
minute it is asked again beside the hanging one, so that a lost connection does not block it permanently.

The threads are our own because they must be daemon threads: anyio's worker threads are not (4.16), so that one
that hangs in a query would keep the process from ending.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from calc_analytics import logs
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.operations.disclosure import NO_ANSWER, Cause, cause_of

T = TypeVar("T")
DEADLINE_SECONDS = 3.0
# A question in flight for that long is asked again; at most so many threads of one question may hang.
GIVEN_UP_SECONDS = 60.0
HANGING_AT_MOST = 3
Question = Callable[[], Any]


@dataclass(frozen=True)
class Answer(Generic[T]):
    """A value, or the error in one line and its public cause."""

    value: T | None
    error: str | None
    seconds: float
    cause: Cause | None = None

    @property
    def answered(self) -> bool:
        """Whether there is a value (which may be None)."""
        return self.error is None


@dataclass
class PendingAnswer:
    """A question in flight."""

    at: float
    answer: "Future[Answer[Any]]"


@dataclass
class Prober:
    """Asks questions; keeps those in flight by name."""

    deadline_seconds: float = DEADLINE_SECONDS
    _in_flight: dict[str, list[PendingAnswer]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, questions: Mapping[str, Question]) -> dict[str, Answer[Any]]:
        """The answers by name, after the deadline at the latest. A name stands for one question."""
        deadline = time.monotonic() + self.deadline_seconds
        asked = {name: self._start(name, question) for name, question in questions.items()}
        return {name: self._await(name, each, deadline) for name, each in asked.items()}

    def _start(self, name: str, question: Question) -> PendingAnswer:
        with self._lock:
            in_flight = [each for each in self._in_flight.get(name, []) if not each.answer.done()]
            if in_flight and not _may_ask_again(in_flight):
                return in_flight[-1]
            at = time.monotonic()
            asked = PendingAnswer(at, in_background(f"probe {name}", partial(_answer, question, at)))
            self._in_flight[name] = [*in_flight, asked]
            return asked

    def _await(self, name: str, asked: PendingAnswer, deadline: float) -> Answer[Any]:
        try:
            return asked.answer.result(max(deadline - time.monotonic(), 0))
        except NotInTime:
            waited, said = time.monotonic() - asked.at, f"no answer within {self.deadline_seconds:g} s"
            return Answer(None, said, waited, Cause(NO_ANSWER, said))


def _may_ask_again(in_flight: list[PendingAnswer]) -> bool:
    return len(in_flight) < HANGING_AT_MOST and time.monotonic() - in_flight[-1].at >= GIVEN_UP_SECONDS


def _answer(question: Question, at: float) -> Answer[Any]:
    value = failure = cause = None
    try:
        value = question()
    except Exception as error:
        failure, cause = logs.error_line(error), cause_of(error)
        if not isinstance(error, CalcAnalyticsError):
            logs.log(logging.ERROR, "probe", exc_info=True, failed=failure)
    return Answer(value, failure, time.monotonic() - at, cause)


def in_background(name: str, work: Callable[[], T]) -> "Future[T]":
    """Runs `work` in a daemon thread: one that hangs does not keep the process from ending."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
