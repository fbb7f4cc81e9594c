"""Questions with deadlines: one that hangs is one line of the answer, and concurrent callers share it."""

import threading
import time

import pytest

from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.operations import probes
from calc_analytics.operations.probes import Prober


@pytest.fixture
def release():
    """An event on which questions hang until the test is over."""
    event = threading.Event()
    yield event
    event.set()


def fail(error: Exception):
    raise error


def test_answers_and_errors_come_back_by_name():
    answers = Prober().ask(
        {"two": lambda: 2, "none": lambda: None, "fails": lambda: fail(CalcAnalyticsError("the disk is full"))}
    )
    assert (answers["two"].value, answers["two"].answered) == (2, True)
    assert (answers["none"].value, answers["none"].answered) == (None, True)
    assert (answers["fails"].value, answers["fails"].error) == (None, "the disk is full")


def test_of_an_internal_error_only_the_class_is_reported(capsys):
    answers = Prober().ask({"bug": lambda: fail(ValueError("postgresql://me:hunter2@db"))})
    assert answers["bug"].error == "internal error: ValueError"


def test_a_question_that_hangs_delays_no_other_beyond_the_deadline(release):
    answers = Prober(deadline_seconds=0.2).ask({"hangs": release.wait, "quick": lambda: 1})
    assert answers["quick"].value == 1
    assert answers["hangs"].error == "no answer within 0.2 s"


def test_it_is_not_asked_again_while_it_hangs_and_answers_who_waits(release):
    prober, asked = Prober(deadline_seconds=0.1), []

    def hang() -> int:
        asked.append(1)
        release.wait()
        return 7

    for _ in range(5):
        assert not prober.ask({"hangs": hang})["hangs"].answered
    assert len(asked) == 1
    release.set()
    prober.deadline_seconds = 30
    assert prober.ask({"hangs": hang})["hangs"].value == 7


def test_one_that_hangs_for_long_is_asked_afresh_but_not_without_end(release, monkeypatch):
    monkeypatch.setattr(probes, "GIVEN_UP_SECONDS", 0.0)
    prober, asked = Prober(deadline_seconds=0.05), []

    def hang() -> None:
        asked.append(1)
        release.wait()

    for _ in range(6):
        prober.ask({"hangs": hang})
    assert len(asked) == probes.HANGING_AT_MOST


def test_a_connection_lost_for_good_is_not_the_end(release, monkeypatch):
    monkeypatch.setattr(probes, "GIVEN_UP_SECONDS", 0.0)
    prober = Prober(deadline_seconds=0.1)
    assert not prober.ask({"database": release.wait})["database"].answered
    prober.deadline_seconds = 30
    assert prober.ask({"database": lambda: "back"})["database"].value == "back"


def test_questions_are_asked_at_the_same_time():
    together = threading.Barrier(5, timeout=30)
    answers = Prober(deadline_seconds=30).ask({str(n): together.wait for n in range(5)})
    assert sorted(answer.value for answer in answers.values()) == [0, 1, 2, 3, 4]


def test_a_thread_that_hangs_does_not_keep_the_process():
    future = probes.in_background("hangs", lambda: time.sleep(3600))
    (thread,) = [each for each in threading.enumerate() if each.name == "hangs"]
    assert thread.daemon
    assert not future.done()
