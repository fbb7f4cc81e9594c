"""The HTTP service: thin endpoints over the health report, the metrics and the trigger.

Answers are `{"data": …}`, errors `{"error": {"code", "message"}}`, at any path and for any failure. Answers disclose
nothing of the inside (`disclosure.py`): details go to the log. `openapi.py` describes all of it.
"""

import asyncio
import hmac
import logging
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from calc_analytics import __version__, logs
from calc_analytics.config import Settings
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.operations import facts as facts_
from calc_analytics.operations.disclosure import cause_of
from calc_analytics.operations.health import NEEDED, health, report
from calc_analytics.operations.metrics import Exposition
from calc_analytics.operations.monitor import Monitor
from calc_analytics.operations.openapi import description
from calc_analytics.operations.page import view
from calc_analytics.operations.page.accept import prefers_html
from calc_analytics.operations.page.figures import figures, readers
from calc_analytics.operations.probes import Prober, in_background
from calc_analytics.operations.reports import Reports
from calc_analytics.operations.sources import Sources
from calc_analytics.operations.trigger import AlreadyTriggered, Trigger

# Host names by which a browser on this machine, or one behind a tunnel, asks. Dagster's UI is there too.
LOCAL = ("127.0.0.1", "localhost")
FRESH = {"Cache-Control": "no-store"}
SEE_THE_LOG = "the service's log has the details"
CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "already_running",
    429: "too_many_requests",
    500: "internal_error",
    503: "unavailable",
}


@dataclass
class Service:
    """The endpoints and what they need. Nothing is connected before the service starts."""

    settings: Settings
    prober: Prober = field(default_factory=Prober)
    ui_port: int | None = None
    """The port of Dagster's UI on this machine, if it is known."""

    def __post_init__(self) -> None:
        self.sources, self.rebuilding = Sources(self.settings), Trigger(self.settings)
        self.reports = Reports(self.settings)
        # A prober of its own: a request is answered from facts that are read after it came in.
        looking = Prober(self.prober.deadline_seconds)
        self.monitor = Monitor(self.sources, looking, self.settings.alert_webhook_url)
        self.exposition = Exposition(self.sources, self.prober, self.monitor.waiting)

    def app(self) -> Starlette:
        """The ASGI application."""
        app = Starlette(
            routes=[
                Route("/", self.index),
                Route("/openapi.json", self.openapi),
                Route("/health/live", self.live),
                Route("/health/rollup", self.rollup),
                Route("/metrics", self.metrics),
                Route("/internal/rollup/trigger", self.trigger, methods=["POST"]),
                Route("/report", self.reports.platform),
                Route("/report/publishers/{id}", self.reports.publisher),
            ],
            exception_handlers={HTTPException: _refused, Exception: _failed},
            lifespan=self._monitoring,
        )
        app.router.redirect_slashes = False
        return app

    async def index(self, request: Request) -> Response:
        """The page for people who come with a browser; for programs, the list of endpoints."""
        if prefers_html(request.headers.get("accept", "")):
            return await self._page(request)
        paths = [path for path in description()["paths"] if path != "/"]
        content = {"service": "calc_analytics", "version": __version__, "endpoints": paths}
        return JSONResponse({"data": content}, headers={"Vary": "Accept"})

    async def _page(self, request: Request) -> Response:
        """200 whatever the health: the page says it."""
        now = datetime.now(timezone.utc)
        facts = await run_in_threadpool(
            facts_.read, self.sources, self.prober, NEEDED, readers(self.settings, now), now
        )
        is_local = self.ui_port is not None and request.url.hostname in LOCAL
        dagster_url = f"http://{request.url.hostname}:{self.ui_port}" if is_local else None
        content = view.render(report(facts).public(), figures(facts), self.settings.timezone, dagster_url)
        return HTMLResponse(content, headers=view.headers())

    async def openapi(self, request: Request) -> Response:
        """The description of all this."""
        return JSONResponse(description())

    async def live(self, request: Request) -> Response:
        """200 as long as the process answers, even if everything else is down."""
        return JSONResponse({"data": {"status": "ok"}}, headers=FRESH)

    async def rollup(self, request: Request) -> Response:
        """200 if nothing is wrong, else 503; in general words, with a code, either way."""
        found = await run_in_threadpool(health, self.sources, self.prober)
        return JSONResponse({"data": found.public()}, 200 if found.healthy else 503, FRESH)

    async def metrics(self, request: Request) -> Response:
        """Prometheus' text; also with the database down."""
        content, content_type = await run_in_threadpool(self.exposition.text, request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": content_type})

    async def trigger(self, request: Request) -> Response:
        """Refreshes and rebuilds today and yesterday, now."""
        if not self.settings.enable_test_endpoints:
            return _error(403, "the trigger is for tests: set ENABLE_TEST_ENDPOINTS=true to open it")
        if not self._may_trigger(request.headers):
            message = "send the header 'Authorization: Bearer TOKEN' with the token of ROLLUP_TRIGGER_TOKEN"
            return _error(401, message, {"WWW-Authenticate": "Bearer"})
        running = in_background("trigger", partial(self.rebuilding.run, uuid.uuid4().hex))
        try:
            done = await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            return _error(503, "the service is stopping; the work was either completed or rolled back")
        except AlreadyTriggered as error:
            return _error(409, str(error), {"Retry-After": "1"})
        except CalcAnalyticsError as error:
            logs.log(logging.WARNING, "trigger", failed=str(error))
            return _error(503, f"{cause_of(error).words}; {SEE_THE_LOG}", {"Retry-After": "5"})
        return JSONResponse({"data": done.as_dict()}, headers=FRESH)

    def _may_trigger(self, headers: Mapping[str, str]) -> bool:
        """Whether the token is right, compared in constant time; without a token in the settings every request may."""
        if self.settings.trigger_token is None:
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(token.strip().encode(), self.settings.trigger_token.encode())
        return right and scheme.lower() == "bearer"

    @asynccontextmanager
    async def _monitoring(self, app: Starlette) -> AsyncIterator[None]:
        """The monitor's first look also imports and connects, so that the first request need not wait for it."""
        self.monitor.start()
        yield
        await run_in_threadpool(self.monitor.stop)


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(
        {"error": {"code": CODES.get(status, "refused"), "message": message}}, status, {**FRESH, **(headers or {})}
    )


async def _refused(request: Request, error: Exception) -> Response:
    """404 and 405, and what an endpoint refuses, in the shape of every error."""
    assert isinstance(error, HTTPException)
    routing = {
        "Not Found": "there is no such path; GET / lists the paths",
        "Method Not Allowed": f"{request.method} is not allowed here",
    }
    return _error(error.status_code, routing.get(error.detail, error.detail), error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    """An internal error, without its stack trace, which goes to the log."""
    return _error(500, f"internal error: {type(error).__name__}; {SEE_THE_LOG}")
