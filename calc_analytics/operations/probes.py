"""Asking several questions at once, each in a thread of its own and with a deadline.

A question that hangs is answered by "no answer", and is not asked a second time beside itself: who asks meanwhile waits
for the same answer. After a while it is given up and asked afresh, so that a connection lost for good is not the end.
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
# A question under way for that long is asked again; of one, so many threads may hang.
GIVEN_UP_SECONDS = 60.0
HANGING_AT_MOST = 3
Question = Callable[[], Any]


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What came back: a value, or the error in one line (`trouble`) and what anybody may know of it (`cause`)."""

    value: T | None
    trouble: str | None
    seconds: float
    cause: Cause | None = None

    @property
    def answered(self) -> bool:
        """Whether there is a value (which may be None)."""
        return self.trouble is None


@dataclass
class PendingAnswer:
    """A question under way."""

    at: float
    answer: "Future[Answer[Any]]"


@dataclass
class Prober:
    """Asks; keeps what is under way by name."""

    deadline_seconds: float = DEADLINE_SECONDS
    _under_way: dict[str, list[PendingAnswer]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, questions: Mapping[str, Question]) -> dict[str, Answer[Any]]:
        """The answers by name, after the deadline at the latest. A name stands for one question, whoever asks it."""
        deadline = time.monotonic() + self.deadline_seconds
        asked = {name: self._asked(name, question) for name, question in questions.items()}
        return {name: self._await(name, each, deadline) for name, each in asked.items()}

    def _asked(self, name: str, question: Question) -> PendingAnswer:
        with self._lock:
            under_way = [each for each in self._under_way.get(name, []) if not each.answer.done()]
            if under_way and not _may_ask_again(under_way):
                return under_way[-1]
            at = time.monotonic()
            asked = PendingAnswer(at, in_background(f"probe {name}", partial(_answer, question, at)))
            self._under_way[name] = [*under_way, asked]
            return asked

    def _await(self, name: str, asked: PendingAnswer, deadline: float) -> Answer[Any]:
        try:
            return asked.answer.result(max(deadline - time.monotonic(), 0))
        except NotInTime:
            waited, said = time.monotonic() - asked.at, f"no answer within {self.deadline_seconds:g} s"
            return Answer(None, said, waited, Cause(NO_ANSWER, said))


def _may_ask_again(under_way: list[PendingAnswer]) -> bool:
    return len(under_way) < HANGING_AT_MOST and time.monotonic() - under_way[-1].at >= GIVEN_UP_SECONDS


def _answer(question: Question, at: float) -> Answer[Any]:
    value = trouble = cause = None
    try:
        value = question()
    except Exception as error:
        trouble, cause = logs.error_line(error), cause_of(error)
        if not isinstance(error, CalcAnalyticsError):
            logs.log(logging.ERROR, "probe", exc_info=True, failed=trouble)
    return Answer(value, trouble, time.monotonic() - at, cause)


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
