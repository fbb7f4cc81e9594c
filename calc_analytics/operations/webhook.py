"""Posts a text to the webhook of ALERT_WEBHOOK_URL, in the form of Slack's incoming webhooks: `{"text": …}`.

A few attempts, each with a deadline of its own: a socket's timeout alone does not bound a slow name lookup,
or an answer that drips. The URL's path is the secret: no message holds more than its host.
"""

import json
import threading
import time
from concurrent.futures import wait
from functools import partial
from urllib.parse import urlsplit

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random
from tenacity.nap import sleep_using_event
from tenacity.stop import stop_when_event_set

from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.operations.probes import in_background

# Fifteen seconds in all, at the most.
ATTEMPTS = 3
FIRST_PAUSE_SECONDS = 0.5
ATTEMPT_SECONDS = 4.0
_SILENT = "no answer in time"


class AlertNotDelivered(CalcAnalyticsError):
    """The webhook did not take an alert. It stays due, and is posted later."""

    transient = True


class _Failed(Exception):
    """One attempt failed; `is_transient`: another one may succeed."""

    def __init__(self, reason: str, is_transient: bool = True) -> None:
        super().__init__(reason)
        self.is_transient = is_transient


def post(url: str, text: str, stopping: threading.Event) -> None:
    """Posts the text; raises `AlertNotDelivered` after the last attempt, or when `stopping` is set.

    Delivered means status 2xx. A redirect is not followed: it would carry the alert to another host.
    """
    attempts = Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, _Failed) and error.is_transient),
        stop=stop_after_attempt(ATTEMPTS) | stop_when_event_set(stopping),
        wait=wait_exponential(multiplier=FIRST_PAUSE_SECONDS) + wait_random(0, FIRST_PAUSE_SECONDS),
        sleep=sleep_using_event(stopping),
        reraise=True,
    )
    try:
        attempts(_attempt, url, json.dumps({"text": text}).encode(), stopping)
        return
    except _Failed as error:
        reason = str(error)
    raise AlertNotDelivered(f"the webhook at {place(url)} did not take an alert: {reason}; check ALERT_WEBHOOK_URL")


def place(url: str) -> str:
    """The webhook's host, without the secret path: 'https://hooks.slack.com/…'."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/…"


def _attempt(url: str, body: bytes, stopping: threading.Event) -> None:
    """One request, in a daemon thread; raises `_Failed`."""
    sent = in_background("webhook", partial(_send, url, body))
    deadline = time.monotonic() + ATTEMPT_SECONDS
    while not sent.done() and time.monotonic() < deadline and not stopping.is_set():
        wait([sent], timeout=0.05)
    if not sent.done():
        raise _Failed("the service is stopping" if stopping.is_set() else _SILENT)
    status, reason = sent.result()
    if status is None or not 200 <= status < 300:
        raise _Failed(reason, is_transient=status is None or status >= 500 or status == 429)


def _send(url: str, body: bytes) -> tuple[int | None, str]:
    """The status and its description, or None and what went wrong."""
    from http.client import HTTPException
    from urllib import error, request

    class NoRedirect(request.HTTPRedirectHandler):
        def redirect_request(self, *arguments: object, **options: object) -> None:
            return None

    sent = request.Request(url, body, {"Content-Type": "application/json", "User-Agent": "calc-analytics"})
    try:
        with request.build_opener(NoRedirect).open(sent, timeout=ATTEMPT_SECONDS) as response:
            return response.status, f"status {response.status}"
    except error.HTTPError as refused:
        refused.close()
        return refused.code, f"it answered with status {refused.code}"
    except error.URLError as failed:
        return None, _describe(failed.reason)
    except (OSError, HTTPException, ValueError) as failed:
        return None, _describe(failed)


def _describe(reason: object) -> str:
    """What happened, in the system's own words only: the message of any other error may hold the URL."""
    if isinstance(reason, TimeoutError):
        return _SILENT
    words = getattr(reason, "verify_message", None) or getattr(reason, "strerror", None)
    return str(words or type(reason).__name__)
