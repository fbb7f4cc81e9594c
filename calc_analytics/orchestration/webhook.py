"""Posts a text to the webhook of ALERT_WEBHOOK_URL, as Slack's incoming webhooks take it: `{"text": …}`.

A few attempts, each of them bounded whatever the other side does (a socket's timeout alone does not bound a name that
is looked up for ever, or an answer that drips). The URL's path is the secret: no message holds more than its host.
"""

import json
import threading
import time
from urllib.parse import urlsplit

from calc_analytics.errors import CalcAnalyticsError

# Seconds before each attempt; each then gets ATTEMPT_SECONDS: fourteen seconds in all, at the most.
PAUSES = (0.0, 0.5, 1.5)
ATTEMPT_SECONDS = 4.0
_SILENT = "no answer in time"


class AlertNotDelivered(CalcAnalyticsError):
    """The webhook did not take an alert. It stays due: the sensor's next ticks try again until it is taken."""

    transient = True


def post(url: str, text: str, stopping: threading.Event) -> None:
    """Posts the text; raises `AlertNotDelivered` after the last attempt, or when `stopping` is set.

    Taken means status 2xx. A redirect is not followed: it would carry the alert to another host.
    """
    body = json.dumps({"text": text}).encode()
    trouble = "the server is stopping"
    for pause in PAUSES:
        if stopping.wait(pause):
            break
        status, trouble = _attempt(url, body, stopping)
        if status is not None and 200 <= status < 300:
            return
        if status is not None and status < 500 and status != 429:
            break
    raise AlertNotDelivered(f"the webhook at {place(url)} did not take an alert: {trouble}; check ALERT_WEBHOOK_URL")


def place(url: str) -> str:
    """Where the webhook is, without what is secret: 'https://hooks.slack.com/…'."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/…"


def _attempt(url: str, body: bytes, stopping: threading.Event) -> tuple[int | None, str]:
    """The status and what it was, or None and what went wrong."""
    answer: list[tuple[int | None, str]] = []
    thread = threading.Thread(target=lambda: answer.append(_send(url, body)), name="webhook", daemon=True)
    thread.start()
    deadline = time.monotonic() + ATTEMPT_SECONDS
    while thread.is_alive() and time.monotonic() < deadline and not stopping.is_set():
        thread.join(0.05)
    return answer[0] if answer else (None, _SILENT)


def _send(url: str, body: bytes) -> tuple[int | None, str]:
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
    """What happened, from the system's own words only: the message of any other error may hold the URL."""
    if isinstance(reason, TimeoutError):
        return _SILENT
    said = getattr(reason, "verify_message", None) or getattr(reason, "strerror", None)
    return str(said or type(reason).__name__)
