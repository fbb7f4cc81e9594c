"""The asset checks: for each partition of a run, for today and yesterday in a run without partitions (what the UI's
"Execute all" starts), and carried along by the sensor's ticks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetCheckEvaluation,
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetKey,
    AssetsDefinition,
    OpExecutionContext,
    PartitionsDefinition,
    asset_check,
)

from calc_analytics import rollup, telemetry
from calc_analytics.days import today_and_yesterday
from calc_analytics.orchestration.evaluations import Target, targets
from calc_analytics.orchestration.partitions import as_days
from calc_analytics.orchestration.resources import RollupDatabase
from calc_analytics.orchestration.retries import TRANSIENT_ERRORS, failing_in_one_line

if TYPE_CHECKING:
    from calc_analytics.rollup.reports import DayProof, LastProof


# In the metadata of streamed evaluations: the days they speak of, joined by commas. The alerts read them.
DAYS_PASSED, DAYS_FAILED = "passed_for", "failed_for"


@dataclass(frozen=True)
class Verdict:
    """What a check says of one day."""

    passed: bool
    description: str
    metadata: dict[str, Any] = field(default_factory=dict)
    severity: AssetCheckSeverity = AssetCheckSeverity.ERROR


Verdicts = dict[date, Verdict]
NOT_COUNTED = "is not counted: a counter exceeds its column; materialize it to see which"


def stats_checks(stats: AssetsDefinition, partitions: PartitionsDefinition) -> list[AssetChecksDefinition]:
    """The three checks on `calculation_stats_daily`."""
    options: dict[str, Any] = {"asset": stats, "partitions_def": partitions, "retry_policy": TRANSIENT_ERRORS}

    @asset_check(**options)
    def stats_match_logs(context: AssetCheckExecutionContext, database: RollupDatabase) -> AssetCheckResult:
        """Proves the day: statistics equal the logs visible in the stored snapshot. Zero difference, or a bug."""
        return _checked(context, database, _proofs)

    @asset_check(**options)
    def source_breakdown_complete(context: AssetCheckExecutionContext, database: RollupDatabase) -> AssetCheckResult:
        """Web, API and external calculations add up to the total; warns with the source codes nobody knows."""
        return _checked(context, database, _breakdowns)

    @asset_check(**options)
    def cache_hits_within_total(context: AssetCheckExecutionContext, database: RollupDatabase) -> AssetCheckResult:
        """No publisher has more cache hits than calculations."""
        return _checked(context, database, _cache_hits)

    return [stats_match_logs, source_breakdown_complete, cache_hits_within_total]


def streamed_evaluations(
    database: RollupDatabase, asset: AssetKey, days: Sequence[date], *, by_day: bool
) -> list[AssetCheckEvaluation]:
    """The checks over the days that a tick has added to. The proof is the last one made, renewed when it is due.

    One for each day if `by_day`, the failed ones last, since the overview shows the last. Without, one for all days:
    Dagster's own storage takes no more than one evaluation per partition from outside of runs.
    """
    verdicts = {
        "stats_match_logs": _last_proofs(database, days),
        "source_breakdown_complete": _breakdowns_without_codes(database, days),
        "cache_hits_within_total": _cache_hits(database, days),
    }
    if by_day:
        told = [(not each.passed, name, each, day) for name, said in verdicts.items() for day, each in said.items()]
        return [_evaluation(asset, name, each, day) for _, name, each, day in sorted(told, key=lambda one: one[0])]
    return [_evaluation(asset, name, _with_days(said)) for name, said in verdicts.items() if said]


def _with_days(said: Verdicts) -> Verdict:
    """One verdict that names the days it speaks of, since the evaluation has no partition to do so."""
    verdict = _together(said)
    days: dict[str, list[str]] = {DAYS_PASSED: [], DAYS_FAILED: []}
    for day, each in said.items():
        days[DAYS_PASSED if each.passed else DAYS_FAILED].append(str(day))
    named = {name: ", ".join(sorted(listed)) for name, listed in days.items() if listed}
    return replace(verdict, metadata={**verdict.metadata, **named})


def _checked(
    context: AssetCheckExecutionContext,
    database: RollupDatabase,
    evaluate: Callable[[RollupDatabase, list[date]], Verdicts],
) -> AssetCheckResult:
    """One evaluation for each partition of the run; for today's and yesterday's if it has none.

    Dagster accepts a returned result from a run with partitions, and gives it a partition if there is a single one.
    In all other runs each day's evaluation is logged, and one that sums them up.
    """
    run = context.op_execution_context
    with failing_in_one_line():
        if run.has_partition_key:
            return AssetCheckResult(**vars(_together(evaluate(database, as_days(run.partition_keys)))))
        ranged = run.has_partition_key_range
        said = evaluate(database, as_days(run.partition_keys) if ranged else today_and_yesterday(database.timezone))
        (key,) = run.selected_asset_check_keys
        of = targets(run.instance.event_log_storage, key.asset_key, [day.isoformat() for day in said])
        for day, verdict in said.items():
            _log(run, _evaluation(key.asset_key, key.name, verdict, day, of.get(day.isoformat())))
        _log(run, _evaluation(key.asset_key, key.name, _together(said)))
    return None  # type: ignore[return-value]  # which Dagster takes: all is logged


def _log(run: OpExecutionContext, evaluation: AssetCheckEvaluation) -> None:
    run.log_event(evaluation)  # type: ignore[arg-type]  # accepted, but annotated too narrowly


def _evaluation(
    asset: AssetKey, name: str, verdict: Verdict, day: date | None = None, target: Target | None = None
) -> AssetCheckEvaluation:
    return AssetCheckEvaluation(
        asset_key=asset,
        check_name=name,
        partition=day.isoformat() if day else None,
        target_materialization_data=target,
        **vars(verdict),
    )


def _together(said: Verdicts) -> Verdict:
    """One verdict over all days: a single day's own, else what is wrong with which."""
    if len(said) == 1:
        return next(iter(said.values()))
    wrong = [verdict for verdict in said.values() if not verdict.passed]
    return Verdict(
        passed=not wrong,
        description="; ".join(verdict.description for verdict in wrong) or f"all {len(said)} days pass",
        metadata={"days": len(said), "days_failed": len(wrong)},
        severity=wrong[0].severity if wrong else AssetCheckSeverity.ERROR,
    )


def _proofs(database: RollupDatabase, days: list[date]) -> Verdicts:
    with telemetry.failures_noted("verify"):
        report = rollup.verify.verify(database.engine, database.rollup, database.timezone, days)
        rollup.verify.record(database.engine, database.rollup, report)
    telemetry.verified(report)
    found = {proof.day: proof for proof in report.days}
    nowhere = rollup.figures.rows_without_a_day(database.engine, database.rollup)
    return {day: _with_nowhere(_proof(day, found.get(day)), nowhere) for day in days}


def _with_nowhere(verdict: Verdict, rows: int) -> Verdict:
    """Rows that no day can hold are said with every day, for lack of a day of their own."""
    if not rows:
        return verdict
    said = f"{verdict.description}; of all logs, {rows:,} rows have no day (created_at is infinite or out of range)"
    return replace(verdict, description=said, metadata={**verdict.metadata, "rows_without_a_day": rows})


def _proof(day: date, proof: "DayProof | None") -> Verdict:
    if proof is None:
        return Verdict(True, "no logs and no statistics")
    metadata = {
        "log_rows": proof.log_rows,
        "counted_rows": proof.counted_rows,
        "difference": proof.difference,
        "duration_seconds": round(proof.seconds, 4),
        **({"pruned_rows": proof.pruned_rows} if proof.pruned_rows else {}),
        **proof.suspects,
    }
    suspects = "".join(f"; {rows:,} {name.replace('_', ' ')}" for name, rows in proof.suspects.items())
    if not proof.built:
        return _unbuilt(proof, metadata)
    if proof.proven and proof.pruned_rows:
        said = f"totals equal the logs and the {proof.pruned_rows:,} rows deleted after they were counted"
        return Verdict(True, said + suspects, metadata)
    if proof.proven:
        return Verdict(True, f"statistics equal logs: zero difference{suspects}", metadata)
    return Verdict(False, f"{day} differs for {proof.differing_keys:,} publishers: {proof.differences}", metadata)


def _unbuilt(proof: "DayProof", metadata: dict[str, Any]) -> Verdict:
    said = f"{proof.day} has {proof.log_rows:,} log rows and "
    if proof.status == "overflow":
        return Verdict(False, said + NOT_COUNTED, metadata)
    if proof.status == "kept":
        said += f"{proof.counted_rows:,} counted before this project: its logs were deleted, so it is left as it was"
        return Verdict(False, said, metadata, AssetCheckSeverity.WARN)
    return Verdict(False, f"{said}was never built: materialize it", metadata)


def _last_proofs(database: RollupDatabase, days: Sequence[date]) -> Verdicts:
    proofs = rollup.verify.keep_proven(database.engine, database.rollup, database.timezone, days)
    overflowed = set(days) & set(rollup.verify.overflowed_days(database.engine, database.rollup))
    return {
        **{day: _last_proof(day, proof) for day, proof in proofs.items()},
        **{day: Verdict(False, f"{day} {NOT_COUNTED}") for day in overflowed},
    }


def _last_proof(day: date, proof: "LastProof") -> Verdict:
    at = f"{proof.at:%H:%M:%S} UTC"
    metadata = {"difference": proof.difference, "duration_seconds": round(proof.seconds, 4), "proven_at": at}
    said = "zero difference" if not proof.difference else f"{day} differs by {proof.difference:,}"
    return Verdict(not proof.difference, f"{said} when last compared, at {at}", metadata)


def _breakdowns(database: RollupDatabase, days: Sequence[date]) -> Verdicts:
    missing = rollup.figures.unknown_sources(database.engine, days)
    codes = rollup.figures.unknown_codes(database.engine, database.timezone, list(missing))
    seen = ", ".join(f"{code} ({rows:,} rows)" for code, rows in sorted(codes.items())) or "none left in the logs"
    return {day: _breakdown(day, missing.get(day, 0), f"codes seen: {seen}") for day in days}


def _breakdowns_without_codes(database: RollupDatabase, days: Sequence[date]) -> Verdicts:
    missing = rollup.figures.unknown_sources(database.engine, days)
    return {day: _breakdown(day, missing.get(day, 0), "materialize the day to see the codes") for day in days}


def _breakdown(day: date, missing: int, codes: str) -> Verdict:
    said = f"{day}: {missing:,} calculations of unknown source; {codes}" if missing else "every source is known"
    return Verdict(not missing, said, {"unknown_rows": missing}, AssetCheckSeverity.WARN)


def _cache_hits(database: RollupDatabase, days: Sequence[date]) -> Verdicts:
    wrong = rollup.figures.cache_hits_above_total(database.engine, days)
    return {day: _cache_hit_verdict(day, [key for at, key in wrong if at == day]) for day in days}


def _cache_hit_verdict(day: date, publishers: list[int]) -> Verdict:
    named = ", ".join(str(key) for key in publishers[:10])
    said = (
        f"{day}: more cache hits than calculations for publisher {named}" if publishers else "cache hits within totals"
    )
    return Verdict(not publishers, said, {"publishers_above_total": len(publishers)})
