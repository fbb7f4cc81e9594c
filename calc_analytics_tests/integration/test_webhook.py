"""Posting to a real HTTP server that takes it, refuses it, hangs, drips, redirects, or is not there."""

import threading
import time

import pytest

from calc_analytics.operations import webhook
from calc_analytics.operations.webhook import AlertNotDelivered, place, post
from calc_analytics.processes.supervisor import free_port
from calc_analytics_tests.receiver import SECRET, receiving

RUNS_ON = threading.Event()


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "ATTEMPT_SECONDS", 0.5)
    monkeypatch.setattr(webhook, "FIRST_PAUSE_SECONDS", 0.02)


def refused(url: str) -> str:
    """What the error says; never the secret, nor in the errors behind it."""
    with pytest.raises(AlertNotDelivered) as raised:
        post(url, "hello", RUNS_ON)
    said = str(raised.value)
    assert "127.0.0.1" in said
    assert "ALERT_WEBHOOK_URL" in said
    assert "\n" not in said
    assert SECRET not in said
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None
    return said


def test_it_posts_what_slack_takes():
    with receiving() as receiver:
        post(receiver.url, "two\nlines, é", RUNS_ON)
    (request,) = receiver.requests
    assert request["body"] == {"text": "two\nlines, é"}
    assert request["path"] == f"/services/{SECRET}"
    assert request["headers"]["Content-Type"] == "application/json"


@pytest.mark.parametrize("failure", [500, 503, 429, "drop", "hang", "drip"])
def test_a_failure_that_passes_is_tried_again(failure):
    with receiving(failure, failure) as receiver:
        post(receiver.url, "hello", RUNS_ON)
    assert receiver.taken == ["hello"]
    assert len(receiver.requests) == 3


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (500, "status 500"),
        ("hang", "no answer in time"),
        ("drip", "no answer in time"),
        ("drop", "RemoteDisconnected"),
    ],
)
def test_after_three_attempts_it_gives_up_for_now(failure, said: str):
    with receiving(*[failure] * 9) as receiver:
        assert said in refused(receiver.url)
    assert len(receiver.requests) == 3


@pytest.mark.parametrize("status", [400, 403, 404, 410])
def test_a_refusal_is_not_tried_again_at_once(status: int):
    with receiving(status) as receiver:
        assert f"status {status}" in refused(receiver.url)
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(status: int):
    with receiving(status) as receiver:
        assert f"status {status}" in refused(receiver.url)
    assert len(receiver.requests) == 1


def test_a_server_that_is_down():
    assert "Connection refused" in refused(f"http://127.0.0.1:{free_port()}/services/{SECRET}")


def test_a_server_that_does_not_speak_tls():
    with receiving() as receiver:
        assert "did not take" in refused(receiver.url.replace("http:", "https:"))


def test_stopping_ends_it_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(webhook, "ATTEMPT_SECONDS", 60.0)
    stopping = threading.Event()
    timer = threading.Timer(0.2, stopping.set)
    with receiving("hang") as receiver:
        timer.start()
        started = time.monotonic()
        with pytest.raises(AlertNotDelivered):
            post(receiver.url, "hello", stopping)
        assert time.monotonic() - started < 30
    timer.join()


def test_what_is_shown_of_a_url_is_its_host():
    assert place(f"https://hooks.slack.com/services/{SECRET}?x={SECRET}") == "https://hooks.slack.com/…"
