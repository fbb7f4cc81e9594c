"""`GET /metrics`: the counts of all processes, and gauges read from the database and Dagster when somebody asks."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import InfoMetricFamily
from prometheus_client.registry import Collector

from calc_analytics import __version__
from calc_analytics.rollup import status
from calc_analytics.service import health
from calc_analytics.service.probes import Answer, Prober, Question
from calc_analytics.service.sources import Sources
from calc_analytics.service.status import figures
from calc_analytics.telemetry import logs
from calc_analytics.telemetry.metrics import PREFIX, AllProcesses
from calc_analytics.telemetry.metrics import counts as own_counts

DAY_STATUSES = ("built", "pending", "stale", "kept", "overflow")


@dataclass
class Exposition:
    """Answers Prometheus, whatever is down."""

    sources: Sources
    prober: Prober

    def text(self, accept: str) -> tuple[bytes, str]:
        """All metrics, and their content type; the format is what `accept` prefers."""
        registry = CollectorRegistry()
        registry.register(Collected([*_counts(), *gauges(self.prober.ask(questions(self.sources)))]))
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type


class Collected(Collector):
    """Metrics that are there already, as the library wants them."""

    def __init__(self, metrics: list[Metric]) -> None:
        self.metrics = metrics

    def describe(self) -> list[Metric]:
        """Asked at registration."""
        return self.metrics

    def collect(self) -> list[Metric]:
        """Asked when they are written out."""
        return self.metrics


def _counts() -> list[Metric]:
    """The counts of all processes; if their files cannot be used, none, and a line in the log."""
    try:
        own_counts()  # so that every counter is there, at zero, before anything has happened
        return list(AllProcesses().collect())
    except (OSError, RuntimeError) as error:
        logs.line(logging.WARNING, "metrics", failed=f"counts cannot be read: {error}")
        return []


def questions(sources: Sources) -> dict[str, Question]:
    """The health probes, and the figures beside them."""
    return {**health.questions(sources), **figures(sources)}


def gauges(answers: Mapping[str, Answer[Any]]) -> Iterator[Metric]:
    """The gauges that the answers hold; of what was not answered there is no sample."""
    report = health.report(answers)
    ok = {finding.name: finding.ok for finding in report.findings}
    up = ok["database"] and ok["tables"] and ok["state"]
    yield InfoMetricFamily(f"{PREFIX}_build", "The version that answers.", {"version": __version__})
    yield _gauge("up", "Whether the database answers and the rollup's state can be read.", up)
    yield _gauge("healthy", "Whether every probe of /health/rollup is content.", report.healthy)
    yield _labelled("probe_ok", "Whether the probe is content.", "probe", ok)
    for name, family in FAMILIES.items():
        if answers[name].value is not None:
            yield from family(answers[name].value)


def _lag(lag: status.Lag) -> Iterator[Metric]:
    limit = f"{status.LAG_ROWS_LIMIT:,}"
    yield _gauge("lag_rows", f"Committed log rows that are not counted yet (at most {limit}).", lag.rows)
    yield _gauge("lag_seconds", "How long the oldest of them has waited at most.", lag.seconds)


def _refreshed(last: status.Refreshed) -> Iterator[Metric]:
    yield from _instant("last_refresh", "When new rows were last counted.", last.at)


def _days(days: status.Days) -> Iterator[Metric]:
    by_status = {name: days.by_status.get(name, 0) for name in DAY_STATUSES}
    yield _labelled("partitions", "Days on record, by their status.", "status", by_status)
    yield _gauge("partitions_sealed", "Days whose logs were deleted after they were counted.", days.sealed)
    yield _gauge("partitions_differing", "Built days that differed from their logs when last compared.", days.different)
    yield _gauge("difference", "The sum of those differences: zero, or a bug.", days.difference)
    yield from _instant("last_rebuild", "When a day was last rebuilt.", days.rebuilt_at)
    yield from _instant("last_verify", "When a day was last compared with its logs.", days.verified_at)


def _writers(writers: list[status.Writer]) -> Iterator[Metric]:
    """No ages, rather than wrong ones, where the role may not see them (`doctor` says what to grant)."""
    of_logs = [writer for writer in writers if writer.writes_logs]
    yield _gauge("open_writers", "Open transactions that have written log rows (at most 20 are seen).", len(of_logs))
    said = "Age of the oldest open transaction that has written"
    if all(writer.seconds is not None for writer in writers):
        yield _gauge("oldest_transaction_age_seconds", f"{said} anything in this database.", _oldest(writers))
        yield _gauge("oldest_writer_age_seconds", f"{said} log rows; it delays no other row.", _oldest(of_logs))


def _oldest(writers: list[status.Writer]) -> float:
    return max((writer.seconds or 0.0 for writer in writers), default=0.0)


def _interval(seconds: float) -> Iterator[Metric]:
    yield _gauge("schedule_interval_seconds", "The longest time between two runs of the schedule.", seconds)


FAMILIES: dict[str, Any] = {
    "lag": _lag,
    "refreshed": _refreshed,
    "days": _days,
    "writers": _writers,
    "interval": _interval,
}


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", help_text, value=float(value))


def _labelled(name: str, help_text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", help_text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], float(number))
    return family


def _instant(name: str, help_text: str, at: datetime | None) -> Iterator[Metric]:
    if at is not None:
        yield _gauge(f"{name}_timestamp_seconds", help_text, at.timestamp())
