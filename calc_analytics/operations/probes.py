"""Asks several questions at once, each in a thread of its own, with one deadline for all.

A question reads several facts in turn. One that hangs has answered those that it read before; the others are answered
by "no answer". Concurrent callers share the question already in flight. One that hangs is asked a second time after a
minute, so that a lost connection does not block it permanently; what it had read is read again for each caller.

The threads are our own because they must be daemon threads: anyio's worker threads are not (4.16), so that one
that hangs in a query would keep the process from ending.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
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


@dataclass(frozen=True)
class Question:
    """Facts of one source: `begin` opens it, and each reader reads one fact from what that gives, in their order.

    Readers with the same names ask the same.
    """

    begin: Callable[[], AbstractContextManager[Any]]
    readers: Mapping[str, Callable[[Any], Any]]


@dataclass
class PendingQuestion:
    """A question in flight, and what it has answered so far. After its deadline it hangs."""

    at: float
    deadline: float
    answers: dict[str, Answer[Any]]
    done: "Future[None]"


@dataclass
class Prober:
    """Asks questions; keeps those in flight by the names of their facts."""

    deadline_seconds: float = DEADLINE_SECONDS
    _in_flight: dict[tuple[str, ...], list[PendingQuestion]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, questions: Iterable[Question]) -> dict[str, Answer[Any]]:
        """The answer to each fact by its name, after the deadline at the latest."""
        deadline = time.monotonic() + self.deadline_seconds
        asked = [each for question in questions for each in self._asked(question, deadline)]
        found: dict[str, Answer[Any]] = {}
        for question, pending in asked:
            with suppress(NotInTime):
                pending.done.result(max(deadline - time.monotonic(), 0))
            answers = dict(pending.answers)
            silent = self._no_answer(pending)
            found.update({name: answers.get(name, silent) for name in question.readers})
        return found

    def _asked(self, question: Question, deadline: float) -> Iterator[tuple[Question, PendingQuestion]]:
        """The question and, if one in flight hangs, another one for what that had read before."""
        pending = self._start(question, deadline)
        yield question, pending
        answered = dict(pending.answers)
        if answered and not pending.done.done() and time.monotonic() >= pending.deadline:
            again = replace(question, readers={name: question.readers[name] for name in answered})
            yield again, self._start(again, deadline)

    def _start(self, question: Question, deadline: float) -> PendingQuestion:
        names = tuple(question.readers)
        with self._lock:
            in_flight = [each for each in self._in_flight.get(names, []) if not each.done.done()]
            if in_flight and not _may_ask_again(in_flight):
                return in_flight[-1]
            answers: dict[str, Answer[Any]] = {}
            done = in_background(f"probe {names[0]}", partial(_read_in_turn, question, answers))
            asked = PendingQuestion(time.monotonic(), deadline, answers, done)
            self._in_flight[names] = [*in_flight, asked]
            return asked

    def _no_answer(self, pending: PendingQuestion) -> Answer[Any]:
        error = f"no answer within {self.deadline_seconds:g} s"
        return Answer(None, error, time.monotonic() - pending.at, Cause(NO_ANSWER, error))


def _may_ask_again(in_flight: Sequence[PendingQuestion]) -> bool:
    return len(in_flight) < HANGING_AT_MOST and time.monotonic() - in_flight[-1].at >= GIVEN_UP_SECONDS


def _read_in_turn(question: Question, answers: dict[str, Answer[Any]]) -> None:
    """Fills in `answers`. After an error the source is opened again for the facts that are left, unless the error
    concerns these as well: it cannot be opened, does not answer any more, or a lock is not free."""
    left = list(question.readers)
    while left:
        started, has_begun = time.monotonic(), False
        try:
            with question.begin() as source:
                has_begun = True
                while left:
                    started = time.monotonic()
                    value = question.readers[left[0]](source)
                    answers[left.pop(0)] = Answer(value, None, time.monotonic() - started)
        except Exception as error:
            is_common = not has_begun or getattr(error, "transient", False)
            failed = left[:] if is_common else left[:1]
            answers.update(dict.fromkeys(failed, _failure(error, time.monotonic() - started)))
            del left[: len(failed)]


def _failure(error: Exception, seconds: float) -> Answer[Any]:
    reason = logs.error_line(error)
    if not isinstance(error, CalcAnalyticsError):
        logs.log(logging.ERROR, "probe", exc_info=True, failed=reason)
    return Answer(None, reason, seconds, cause_of(error))


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
