"""`GET /metrics`: counters from the journal, and gauges from the facts of the health report, read on each request.

The journal is written in each operation's own transaction, whichever process runs it, so the counters are exact,
survive restarts, and never fall. While the database is down there are none.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import InfoMetricFamily
from prometheus_client.registry import Collector

from calc_analytics import __version__
from calc_analytics.database.writers import Writer
from calc_analytics.operations import facts as facts_
from calc_analytics.operations import health
from calc_analytics.operations.facts import Facts
from calc_analytics.operations.probes import Prober
from calc_analytics.operations.sources import Sources
from calc_analytics.rollup import journal, status

PREFIX = "calc_analytics"
TIMED = ("refresh", "rebuild", "verify", "audit")
MAY_FAIL = ("refresh", "rebuild", "verify")


@dataclass
class Exposition:
    """Answers Prometheus, even if everything else is down. `waiting`: how many alerts the webhook has not taken yet."""

    sources: Sources
    prober: Prober
    waiting: Callable[[], int]

    def text(self, accept: str) -> tuple[bytes, str]:
        """All metrics, and their content type; the format is what `accept` prefers."""
        facts = facts_.read(self.sources, self.prober, (*health.NEEDED, "writers", "totals"))
        registry = CollectorRegistry()
        registry.register(MetricsCollector([*metrics(facts), *_alerts(self.waiting())]))
        encode, content_type = _encoder(accept)
        return encode(registry), content_type


def _encoder(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    """The format that `accept` prefers; plain text where the library cannot read its version."""
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):
        return choose_encoder("")


class MetricsCollector(Collector):
    """Metrics that are made already, in the form of the library."""

    def __init__(self, metrics: list[Metric]) -> None:
        self.metrics = metrics

    def describe(self) -> list[Metric]:
        """For the registration."""
        return self.metrics

    def collect(self) -> list[Metric]:
        """For the exposition."""
        return self.metrics


def metrics(facts: Facts) -> Iterator[Metric]:
    """The counters and gauges that the facts hold; a group that was not answered has no sample."""
    report = health.report(facts)
    passes = {finding.name: finding.ok for finding in report.findings}
    up = passes["database"] and passes["tables"] and passes["state"]
    yield InfoMetricFamily(f"{PREFIX}_build", "The version that answers.", {"version": __version__})
    yield _gauge("up", "Whether the database answers and the rollup's state can be read.", up)
    yield _gauge("healthy", "Whether every probe of /health/rollup passes.", report.healthy)
    yield _labelled("probe_ok", "Whether the probe passes.", "probe", passes)
    for group, family in FAMILIES.items():
        if (value := facts.known(group)) is not None:
            yield from family(value)


def _alerts(waiting: int) -> Iterator[Metric]:
    yield _gauge("alerts_waiting", "Alerts that the webhook of ALERT_WEBHOOK_URL has not taken yet.", waiting)


def _log(log: status.LogReport) -> Iterator[Metric]:
    limit = f"{status.LAG_ROWS_LIMIT:,}"
    yield _gauge("lag_rows", f"Committed log rows that are not counted yet (at most {limit}).", log.lag.rows)
    yield _gauge("lag_seconds", "How long the oldest of them has waited at most.", log.lag.seconds)


def _ledger(ledger: status.LedgerReport) -> Iterator[Metric]:
    if ledger.refreshed:
        yield from _instant("last_refresh", "When new rows were last counted.", ledger.refreshed.at)
    yield from _days(ledger.days)
    help_text = "Archived days whose rows do not add up to what was counted, when last compared."
    yield _gauge("archive_days_differing", help_text, len(ledger.unbalanced))


def _days(days: dict[str, status.Days]) -> Iterator[Metric]:
    yield _partitions(days)
    help_text = "Built days of which some log rows were deleted since; their statistics are kept."
    yield _per_rollup("partitions_pruned", help_text, days, lambda each: each.pruned)
    help_text = "Days that differ from the log or from what was counted, when last compared."
    yield _per_rollup("partitions_differing", help_text, days, lambda each: each.different)
    help_text = "The sum of those differences: zero unless a day needs a decision or a repair."
    yield _per_rollup("difference", help_text, days, lambda each: each.difference)
    yield _instants("last_rebuild", "When a day was last rebuilt.", days, lambda each: each.rebuilt_at)
    yield _instants("last_verify", "When a day was last compared with its log.", days, lambda each: each.verified_at)
    help_text = "When the least recently compared built day was last compared."
    yield _instants("oldest_proof", help_text, days, lambda each: each.oldest_proof_at)
    yield from _instant("last_audit", "When all days were last audited.", status.together(days.values()).audited_at)


def _partitions(days: dict[str, status.Days]) -> Metric:
    name, help_text = f"{PREFIX}_partitions", "Days on record, by rollup and status."
    family = GaugeMetricFamily(name, help_text, labels=["rollup", "status"])
    for rollup, each in days.items():
        for word in status.STATUSES:
            family.add_metric([rollup, word], float(each.by_status.get(word, 0)))
    return family


def _totals(found: facts_.Totals) -> Iterator[Metric]:
    """The journal's sums as counters; each is there, at zero, before anything has happened."""
    totals = found.operations
    done = {row["operation"]: row for row in totals if not row["failed"]}

    def total(column: str, *operations: str) -> float:
        return sum(float(done[name][column]) for name in operations if name in done)

    yield _counter("rows_counted", "Log rows that refreshes added to the statistics.", total("rows", "refresh"))
    yield _counter("rows_rebuilt", "Log rows in the days that rebuilds recounted.", total("rows", "rebuild"))
    yield _counter("partitions_rebuilt", "Days that rebuilds recounted.", total("days", "rebuild"))
    help_text = "Days that a rebuild left alone and that need a decision or a repair."
    yield _counter("partitions_refused", help_text, total("days", "refuse"))
    yield _counter("rows_pruned", "Counted log rows that were deleted by prune.", total("rows", "prune"))
    help_text = "Days of one rollup each that were compared with the log."
    yield _counter("partitions_verified", help_text, total("operations", "verify"))
    help_text = "Comparisons and audits that found a day different."
    yield _counter("differences_found", help_text, total("days", "verify", "audit"))
    for name in TIMED:
        yield _duration(name, total("operations", name), total("seconds", name))
    yield _failures({row["operation"]: row["operations"] for row in totals if row["failed"]})
    yield from _ages(found.ages)


def _duration(operation: str, count: float, seconds: float) -> Metric:
    of = {"refresh": " that found new rows", "rebuild": " of at most ten days", "verify": " of one day and rollup"}
    help_text = f"How long each {operation}{of.get(operation, '')} took."
    name = f"{PREFIX}_{operation}_duration_seconds"
    return SummaryMetricFamily(name, help_text, count_value=int(count), sum_value=seconds)


def _failures(failed: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(f"{PREFIX}_failures", "Operations that ended in an error.", labels=["operation"])
    for operation, number in {**dict.fromkeys(MAY_FAIL, 0), **failed}.items():
        family.add_metric([operation], float(number))
    return family


def _ages(minutes: Sequence[journal.Freshness]) -> Iterator[Metric]:
    """No sample where nothing was counted."""
    help_text = (
        "Ages at which rows were counted: median, 95th percentile, greatest; the worst of the last five minutes."
    )
    if minutes:
        family = GaugeMetricFamily(f"{PREFIX}_counted_age_seconds", help_text, labels=["quantile"])
        family.add_metric(["0.5"], max(minute.p50 for minute in minutes))
        family.add_metric(["0.95"], max(minute.p95 for minute in minutes))
        family.add_metric(["1"], max(minute.oldest for minute in minutes))
        yield family


def _writers(writers: list[Writer]) -> Iterator[Metric]:
    """No ages, rather than wrong ones, where the role may not see them (`doctor` says what to grant)."""
    of_logs = [writer for writer in writers if writer.writes_logs]
    yield _gauge("open_writers", "Open transactions that have written log rows (at most 20 are seen).", len(of_logs))
    help_text = "Age of the oldest open transaction that has written"
    if all(writer.seconds is not None for writer in writers):
        yield _gauge("oldest_transaction_age_seconds", f"{help_text} anything in this database.", _oldest(writers))
        yield _gauge("oldest_writer_age_seconds", f"{help_text} log rows; it delays no other row.", _oldest(of_logs))


def _oldest(writers: list[Writer]) -> float:
    return max((writer.seconds or 0.0 for writer in writers), default=0.0)


def _interval(seconds: float) -> Iterator[Metric]:
    yield _gauge("schedule_interval_seconds", "The longest time between two runs of the schedule.", seconds)


FAMILIES: dict[str, Any] = {
    "totals": _totals,
    "log": _log,
    "ledger": _ledger,
    "writers": _writers,
    "interval": _interval,
}


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", help_text, value=float(value))


def _counter(name: str, help_text: str, value: float) -> Metric:
    return CounterMetricFamily(f"{PREFIX}_{name}", help_text, value=value)


def _per_rollup(
    name: str, help_text: str, days: dict[str, status.Days], value: Callable[[status.Days], float]
) -> Metric:
    return _labelled(name, help_text, "rollup", {rollup: value(each) for rollup, each in days.items()})


def _instants(
    name: str, help_text: str, days: dict[str, status.Days], at: Callable[[status.Days], datetime | None]
) -> Metric:
    """An instant for each rollup that has one."""
    known = {rollup: instant.timestamp() for rollup, each in days.items() if (instant := at(each)) is not None}
    return _labelled(f"{name}_timestamp_seconds", help_text, "rollup", known)


def _labelled(name: str, help_text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", help_text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], float(number))
    return family


def _instant(name: str, help_text: str, at: datetime | None) -> Iterator[Metric]:
    if at is not None:
        yield _gauge(f"{name}_timestamp_seconds", help_text, at.timestamp())
