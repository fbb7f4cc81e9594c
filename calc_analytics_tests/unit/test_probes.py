"""Questions with deadlines: one that hangs is one line of the answer, and concurrent callers share it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest

from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.operations import probes
from calc_analytics.operations.probes import Answer, Prober, Question


@pytest.fixture
def release():
    """An event on which questions hang until the test is over."""
    event = threading.Event()
    yield event
    event.set()


def fail(error: Exception):
    raise error


def ask(prober: Prober, **asked: Callable[[], Any]) -> dict[str, Answer[Any]]:
    """The answers to questions of one fact each."""
    return prober.ask([Question(nullcontext, {name: lambda _, read=read: read()}) for name, read in asked.items()])


def test_answers_and_errors_come_back_by_name():
    error = CalcAnalyticsError("the disk is full")
    answers = ask(Prober(), two=lambda: 2, none=lambda: None, fails=lambda: fail(error))
    assert (answers["two"].value, answers["two"].answered) == (2, True)
    assert (answers["none"].value, answers["none"].answered) == (None, True)
    assert (answers["fails"].value, answers["fails"].error) == (None, "the disk is full")


def test_of_an_internal_error_only_the_class_is_reported(capsys):
    answers = ask(Prober(), bug=lambda: fail(ValueError("postgresql://me:hunter2@db")))
    assert answers["bug"].error == "internal error: ValueError"


def test_a_question_that_hangs_delays_no_other_beyond_the_deadline(release):
    answers = ask(Prober(deadline_seconds=0.2), hangs=release.wait, quick=lambda: 1)
    assert answers["quick"].value == 1
    assert answers["hangs"].error == "no answer within 0.2 s"


def test_it_is_not_asked_again_while_it_hangs_and_answers_who_waits(release):
    prober, asked = Prober(deadline_seconds=0.1), []

    def hang() -> int:
        asked.append(1)
        release.wait()
        return 7

    for _ in range(5):
        assert not ask(prober, hangs=hang)["hangs"].answered
    assert len(asked) == 1
    release.set()
    prober.deadline_seconds = 30
    assert ask(prober, hangs=hang)["hangs"].value == 7


def test_one_that_hangs_for_long_is_asked_afresh_but_not_without_end(release, monkeypatch):
    monkeypatch.setattr(probes, "GIVEN_UP_SECONDS", 0.0)
    prober, asked = Prober(deadline_seconds=0.05), []

    def hang() -> None:
        asked.append(1)
        release.wait()

    for _ in range(6):
        ask(prober, hangs=hang)
    assert len(asked) == probes.HANGING_AT_MOST


def test_a_connection_lost_for_good_is_not_the_end(release, monkeypatch):
    monkeypatch.setattr(probes, "GIVEN_UP_SECONDS", 0.0)
    prober = Prober(deadline_seconds=0.1)
    assert not ask(prober, database=release.wait)["database"].answered
    prober.deadline_seconds = 30
    assert ask(prober, database=lambda: "back")["database"].value == "back"


def test_questions_are_asked_at_the_same_time():
    together = threading.Barrier(5, timeout=30)
    answers = ask(Prober(deadline_seconds=30), **{str(n): together.wait for n in range(5)})
    assert sorted(answer.value for answer in answers.values()) == [0, 1, 2, 3, 4]


class Source:
    """Something that is opened for a question; counts how often."""

    def __init__(self) -> None:
        self.opened = 0

    @contextmanager
    def begin(self) -> Iterator["Source"]:
        """Opens it."""
        self.opened += 1
        yield self


def read(question: Question, deadline_seconds: float = 30) -> dict[str, Any]:
    """The values or errors by name."""
    answers = Prober(deadline_seconds).ask([question])
    return {name: answer.value if answer.answered else answer.error for name, answer in answers.items()}


def test_the_facts_of_a_source_are_read_in_turn_from_one_opening():
    source, order = Source(), []
    readers = {name: lambda given, name=name: order.append(name) or given.opened for name in ("a", "b", "c")}
    assert read(Question(source.begin, readers)) == {"a": 1, "b": 1, "c": 1}
    assert (source.opened, order) == (1, ["a", "b", "c"])


def test_what_was_read_before_a_fact_hangs_is_answered(release):
    readers = {"before": lambda _: 1, "hangs": lambda _: release.wait(), "after": lambda _: 2}
    silent = "no answer within 0.2 s"
    assert read(Question(Source().begin, readers), 0.2) == {"before": 1, "hangs": silent, "after": silent}


def test_while_a_fact_hangs_those_before_it_are_read_again_and_not_kept(release):
    prober, counts = Prober(0.1), {"before": 0, "hangs": 0}

    def count(name: str) -> int:
        counts[name] += 1
        return counts[name]

    question = Question(
        Source().begin, {"before": lambda _: count("before"), "hangs": lambda _: release.wait(count("hangs") * 60)}
    )
    for n in range(1, 4):
        answers = prober.ask([question])
        assert (answers["before"].value, answers["hangs"].answered) == (n, False)
    assert counts["hangs"] == 1


def test_after_an_error_the_others_are_read_from_another_opening():
    source = Source()
    readers = {"fails": lambda _: fail(CalcAnalyticsError("permission denied")), "after": lambda given: given.opened}
    assert read(Question(source.begin, readers)) == {"fails": "permission denied", "after": 2}


def test_an_error_that_concerns_the_source_is_the_answer_for_all_that_is_left():
    class LockNotFree(CalcAnalyticsError):
        transient = True

    source = Source()
    readers = {"before": lambda _: 1, "waits": lambda _: fail(LockNotFree("not free")), "after": lambda _: 2}
    assert read(Question(source.begin, readers)) == {"before": 1, "waits": "not free", "after": "not free"}
    assert source.opened == 1
    closed = Question(lambda: fail(CalcAnalyticsError("access refused")), readers)
    assert read(closed) == dict.fromkeys(readers, "access refused")


def test_a_thread_that_hangs_does_not_keep_the_process():
    future = probes.in_background("hangs", lambda: time.sleep(3600))
    (thread,) = [each for each in threading.enumerate() if each.name == "hangs"]
    assert thread.daemon
    assert not future.done()
