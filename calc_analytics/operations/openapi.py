"""The OpenAPI description of the HTTP service, served at `/openapi.json`; a test holds the service to it."""

from typing import Any

from calc_analytics import __version__

_TEXT = {"type": "string"}
_YES_OR_NO = {"type": "boolean"}
_INSTANT = {"type": ["string", "null"], "format": "date-time"}
_OBJECT = {"type": "object"}


def description() -> dict[str, Any]:
    """OpenAPI 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "calc_analytics",
            "version": __version__,
            "description": "Health, a page for people, metrics, reports, and a manual trigger that counts new rows.",
        },
        "paths": {
            "/": {"get": _get("A page for people, if Accept prefers text/html; else the endpoints.", {"200": _HOME})},
            "/openapi.json": {"get": _get("This description.", {"200": _json("OpenAPI 3.1.", _OBJECT)})},
            "/health/live": {"get": _get("Whether the process answers.", {"200": _data(_record(status=_TEXT))})},
            "/health/rollup": {
                "get": _get(
                    "Whether statistics are kept up to date and are right: one entry per probe, with what it compared.",
                    {
                        "200": _data(_HEALTH, "Every probe passes."),
                        "503": _data(_HEALTH, "The probes say what is wrong."),
                    },
                )
            },
            "/metrics": {"get": _get("Prometheus' text format.", {"200": _METRICS})},
            "/internal/rollup/trigger": {"post": _TRIGGER},
            "/report": {"get": _report("The report of all publishers.")},
            "/report/publishers/{id}": {"get": _report("The report of one publisher.", _PUBLISHER)},
        },
        "components": {
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "password": {"type": "http", "scheme": "basic"},
            }
        },
    }


def _get(summary: str, responses: dict[str, Any]) -> dict[str, Any]:
    return {"summary": summary, "responses": responses}


def _record(**properties: Any) -> dict[str, Any]:
    """An object that has all of these."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _json(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _data(schema: dict[str, Any], text: str = "OK.") -> dict[str, Any]:
    return _json(text, _record(data=schema))


def _error(text: str) -> dict[str, Any]:
    return _json(text, _record(error=_record(code=_TEXT, message=_TEXT)))


def _report(summary: str, *parameters: dict[str, Any]) -> dict[str, Any]:
    unknown = {"404": _error("No calculation of the publisher was ever counted.")} if parameters else {}
    return {
        "summary": f"{summary} HTML; closed unless REPORT_TOKEN is set.",
        "security": [{"token": []}, {"password": []}],
        "parameters": [*parameters, *_PERIOD],
        "responses": {**_REPORT, **unknown},
    }


_DAY = {"type": "string", "format": "date"}
_PERIOD = [
    {"name": "from", "in": "query", "description": "First day; default: 29 days before the last.", "schema": _DAY},
    {"name": "to", "in": "query", "description": "Last day; default: today.", "schema": _DAY},
]
_PUBLISHER = {"name": "id", "in": "path", "required": True, "schema": {"type": "integer", "format": "int64"}}
_REPORT = {
    "200": {"description": "A page.", "content": {"text/html": {"schema": _TEXT}}},
    "400": _error("The days are not usable."),
    "401": _error("The token is missing or wrong."),
    "403": _error("REPORT_TOKEN is not set."),
    "429": _error("Another report is being computed."),
    "503": _error("The database is down or refused the request."),
}
_INDEX = _record(service=_TEXT, version=_TEXT, endpoints={"type": "array", "items": _TEXT})
_HOME = {
    "description": "OK; the page says what is wrong.",
    "content": {"application/json": {"schema": _record(data=_INDEX)}, "text/html": {"schema": _TEXT}},
}
_PROBE = _record(
    name=_TEXT,
    ok=_YES_OR_NO,
    level={"enum": ["ok", "note", "wrong"]},
    compared=_TEXT,
    why={"type": ["string", "null"]},
    code={"type": ["string", "null"]},
    next_command={"type": ["string", "null"]},
    seconds={"type": "number"},
)
_HEALTH = _record(
    status={"enum": ["ok", "unhealthy"]},
    running=_YES_OR_NO,
    healthy=_YES_OR_NO,
    last_run=_INSTANT,
    checked_at=_INSTANT,
    version=_TEXT,
    probes={"type": "array", "items": _PROBE},
)
_METRICS = {
    "description": "Every counter and gauge.",
    "content": {"text/plain": {"schema": _TEXT}, "application/openmetrics-text": {"schema": _TEXT}},
}
_TRIGGER = {
    "summary": "Refreshes and rebuilds today and yesterday, now. For tests: off unless ENABLE_TEST_ENDPOINTS is true.",
    "security": [{"token": []}, {}],
    "responses": {
        "200": _data(
            _record(status={"const": "triggered"}, request_id=_TEXT, message=_TEXT, refresh=_OBJECT, rebuild=_OBJECT),
            "Done; all that was committed before the request is counted.",
        ),
        "401": _error("The token is missing or wrong."),
        "403": _error("ENABLE_TEST_ENDPOINTS is not true."),
        "409": _error("Another trigger runs."),
        "503": _error("The database is down or refused the request."),
    },
}
