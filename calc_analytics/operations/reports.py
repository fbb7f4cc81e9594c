"""Reports over HTTP: open to those who have the token of REPORT_TOKEN, closed while it is not set.

Programs send the token as `Authorization: Bearer TOKEN`. A browser asks for it itself: it is the password of HTTP's
Basic authentication, with any user name. It is never accepted in the URL, which access logs and histories keep.
"""

import asyncio
import base64
import binascii
import hmac
import logging
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from calc_analytics import days, logs, rollups
from calc_analytics.config import Settings
from calc_analytics.database.engine import database_url, engine_for, with_timeouts
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.operations.disclosure import cause_of
from calc_analytics.operations.probes import in_background

# All statements of a report together. A report of a year of a large platform takes seconds; one that takes longer is
# answered by 503, and the next one may be computed.
READING_SECONDS = 30.0
PARAMETERS = ("from", "to")
CHALLENGE = {"WWW-Authenticate": 'Basic realm="calc_analytics reports", charset="UTF-8"'}


class ReportRunning(CalcAnalyticsError):
    """A report is being computed; one at a time, so that reports do not slow down what they report."""


# Milliseconds: those of the report that are left, or fewer, if a statement has a lower limit.
_LIMIT = """
    select set_config('statement_timeout', cast(least(cast(setting as integer), %(left)s) as text), true)
    from pg_settings where name = 'statement_timeout'
"""


@dataclass
class Reports:
    """The endpoints. Errors are `HTTPException`, which the service puts into the form of every error."""

    settings: Settings
    _busy: threading.Lock = field(default_factory=threading.Lock)

    async def platform(self, request: Request) -> Response:
        """The report of all publishers."""
        return await self._answer(request, None)

    async def publisher(self, request: Request) -> Response:
        """The report of one publisher."""
        return await self._answer(request, str(request.path_params["id"]))

    async def _answer(self, request: Request, id_: str | None) -> Response:
        require_token(request.headers, self.settings.report_token)
        publisher = None if id_ is None else _publisher(id_)
        _require_known(request)
        first, last = (_day(request, name) for name in PARAMETERS)
        try:
            content = await asyncio.wrap_future(in_background("report", partial(self._render, publisher, first, last)))
        except asyncio.CancelledError:
            raise HTTPException(503, "the service is stopping") from None
        except CalcAnalyticsError as error:
            raise _refused(error) from None
        return HTMLResponse(content, headers=_headers())

    def _render(self, publisher: int | None, first: date | None, last: date | None) -> str:
        """The page; raises `ReportRunning`, or what `read_report` raises."""
        # matplotlib and pandas are imported with the first report, not with the service.
        from calc_analytics.readers.page import render
        from calc_analytics.readers.report import read_report

        if not self._busy.acquire(blocking=False):
            raise ReportRunning("another report is being computed: ask again when it is done")
        try:
            url = with_timeouts(database_url(self.settings))
            engine = engine_for(url, "calc_analytics report", READING_SECONDS)
            limit_statements(engine, time.monotonic() + READING_SECONDS)
            try:
                return render(read_report(rollups.database(engine, self.settings), publisher, first, last))
            finally:
                engine.dispose()
        finally:
            self._busy.release()


def limit_statements(engine: Engine, deadline: float) -> None:
    """Gives each statement the time that is left until `deadline` (`time.monotonic()`); PostgreSQL cancels it then.

    A statement that has a lower limit keeps it.
    """

    def limit(connection: Connection, cursor: psycopg.Cursor, *_: Any) -> None:
        # After an error nothing but a rollback is possible.
        if cursor.connection.info.transaction_status != TransactionStatus.INERROR:
            cursor.execute(_LIMIT, {"left": max(round(1000 * (deadline - time.monotonic())), 1)})

    event.listen(engine, "before_cursor_execute", limit)


def require_token(headers: Mapping[str, str], token: str | None) -> None:
    """Raises `HTTPException` 403 if reports are closed, 401 if the token is missing or wrong."""
    if token is None:
        raise HTTPException(403, "reports are closed: set REPORT_TOKEN to open them")
    if not hmac.compare_digest(_token_of(headers.get("authorization", "")).encode(), token.encode()):
        words = "send the token of REPORT_TOKEN: 'Authorization: Bearer TOKEN', or as the password in a browser"
        raise HTTPException(401, words, CHALLENGE)


def _token_of(authorization: str) -> str:
    """The token of a Bearer header, or the password of a Basic one; '' if there is none."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _publisher(id_: str) -> int:
    if not re.fullmatch("-?[0-9]{1,18}", id_):
        raise HTTPException(404, "there is no such publisher: its id is a whole number")
    return int(id_)


def _require_known(request: Request) -> None:
    """A misspelt parameter would be a report of other days; 'publisher' would be one of all publishers."""
    for name in request.query_params:
        if name not in PARAMETERS:
            raise HTTPException(400, f"there is no parameter '{name[:40]}': the parameters are {', '.join(PARAMETERS)}")


def _day(request: Request, name: str) -> date | None:
    text = request.query_params.get(name)
    try:
        return None if text is None else days.parse_day(text)
    except days.InvalidDay as error:
        raise HTTPException(400, f"{name}: {error}") from None


def _refused(error: CalcAnalyticsError) -> HTTPException:
    """What is wrong with the request in its own words, anything else in public ones."""
    from calc_analytics.readers.period import PeriodTooLong
    from calc_analytics.readers.questions import UnknownPublisher

    if isinstance(error, UnknownPublisher):
        return HTTPException(404, str(error))
    if isinstance(error, days.InvalidDay | PeriodTooLong):
        return HTTPException(400, str(error))
    if isinstance(error, ReportRunning):
        return HTTPException(429, str(error), {"Retry-After": "2"})
    logs.log(logging.WARNING, "report", failed=str(error))
    return HTTPException(503, f"{cause_of(error).words}; the service's log has the details", {"Retry-After": "5"})


def _headers() -> dict[str, str]:
    from calc_analytics.readers.page import policy

    return {
        "Content-Security-Policy": f"{policy()}; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
