"""The asset checks: for each partition of a run, for today and yesterday in a run without partitions (what the UI's
"Execute all" starts). They are one step, and are evaluated in runs only.

Each rollup has a check that compares it with the log and with what was counted, and one per check that it declares;
one of these may compare a day's counts with the weeks before, and only warns.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetCheckEvaluation,
    AssetCheckExecutionContext,
    AssetCheckKey,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetKey,
    OpExecutionContext,
    PartitionsDefinition,
    multi_asset_check,
)

from calc_analytics import logs
from calc_analytics.days import today_and_yesterday
from calc_analytics.orchestration.evaluations import latest_materializations
from calc_analytics.orchestration.partitions import as_days
from calc_analytics.orchestration.resources import RollupDatabase
from calc_analytics.orchestration.retries import TRANSIENT_ERRORS, as_dagster_failure
from calc_analytics.plurals import number

if TYPE_CHECKING:
    from calc_analytics.orchestration.dagster_internals import EvaluationTarget
    from calc_analytics.rollup.database import Database
    from calc_analytics.rollup.declaration import Check, Log, Rollup
    from calc_analytics.rollup.figures import Violations
    from calc_analytics.rollup.reports import DayProof
    from calc_analytics.rollup.usual import Count, Judgement

# The name of the step.
CHECKS = "checks"
MATCH_DESCRIPTION = (
    "Statistics equal what was counted, and what was counted equals the log and the rows deleted since: any difference "
    "fails, with the keys that differ and the command that resolves it. So does a day in the archive with other rows "
    "than were counted."
)

USUAL_DESCRIPTION = (
    "A day's calculations, of each publisher and of all together, are near those of the same weekday in the eight "
    "weeks before. Only warns: after a holiday or a campaign nothing needs to be done."
)
# Publishers that a warning names.
NAMED = 10


@dataclass(frozen=True)
class Verdict:
    """The result of a check for one day."""

    passed: bool
    description: str
    metadata: dict[str, Any] = field(default_factory=dict)
    severity: AssetCheckSeverity = AssetCheckSeverity.ERROR


Verdicts = dict[date, Verdict]


def rollup_checks(log: "Log", partitions: PartitionsDefinition) -> AssetChecksDefinition:
    """Every check of every rollup of the log, over these daily partitions."""

    @multi_asset_check(
        name=CHECKS,
        specs=[spec for declared in log.rollups for spec in _specs(declared, partitions)],
        description="Compares the days of the run with the log and evaluates the declared checks.",
        can_subset=True,
        retry_policy=TRANSIENT_ERRORS,
    )
    def checks(context: AssetCheckExecutionContext, database: RollupDatabase) -> Iterator[AssetCheckResult]:
        yield from _check(context.op_execution_context, database)

    return checks


def check_keys(log: "Log", rollups: Collection[str]) -> list[AssetCheckKey]:
    """Every check of these rollups."""
    return [
        _key(declared, name) for declared in log.rollups if declared.name in rollups for name in declared.check_names
    ]


def match_key(declared: "Rollup") -> AssetCheckKey:
    """The check that compares the rollup with its log."""
    return _key(declared, declared.match_check_name)


def _key(declared: "Rollup", name: str) -> AssetCheckKey:
    return AssetCheckKey(AssetKey(declared.name), name)


def _specs(declared: "Rollup", partitions: PartitionsDefinition) -> Iterator[AssetCheckSpec]:
    described = {declared.match_check_name: MATCH_DESCRIPTION}
    described.update({check.name: check.description for check in declared.checks})
    if declared.usual_check:
        described[declared.usual_check] = USUAL_DESCRIPTION
    for name, description in described.items():
        yield AssetCheckSpec(name, asset=declared.name, description=description, partitions_def=partitions)


def _check(run: OpExecutionContext, database: RollupDatabase) -> Iterator[AssetCheckResult]:
    """One evaluation of each selected check for each partition of the run; for today and yesterday if it has none.

    Dagster gives a returned result a partition only if the run has a single one. In all other runs each day's
    evaluation is logged, and one that sums them up.
    """
    is_of_days = run.has_partition_key or run.has_partition_key_range
    with as_dagster_failure():
        db = database.db
        days = as_days(run.partition_keys) if is_of_days else today_and_yesterday(db.timezone)
        found = evaluate(db, run.selected_asset_check_keys, days)
        if not run.has_partition_key:
            _log_each(run, found, days)
            return
    for key, verdicts in found.items():
        yield AssetCheckResult(asset_key=key.asset_key, check_name=key.name, **vars(_together(verdicts)))


def _log_each(run: OpExecutionContext, found: dict[AssetCheckKey, Verdicts], days: Sequence[date]) -> None:
    keys = [str(day) for day in days]
    targets = {asset: latest_materializations(run.instance, asset, keys) for asset in {key.asset_key for key in found}}
    for key, verdicts in found.items():
        for day, verdict in verdicts.items():
            _log(run, _evaluation(key, verdict, str(day), targets[key.asset_key].get(str(day))))
        _log(run, _evaluation(key, _together(verdicts)))


def _log(run: OpExecutionContext, evaluation: AssetCheckEvaluation) -> None:
    run.log_event(evaluation)  # type: ignore[arg-type]  # accepted, but annotated too narrowly


def _evaluation(
    key: AssetCheckKey, verdict: Verdict, partition: str | None = None, target: "EvaluationTarget | None" = None
) -> AssetCheckEvaluation:
    return AssetCheckEvaluation(
        asset_key=key.asset_key,
        check_name=key.name,
        partition=partition,
        target_materialization_data=target,
        **vars(verdict),
    )


def _together(verdicts: Verdicts) -> Verdict:
    """One verdict over all days: a single day's own, otherwise the descriptions of those that failed."""
    if len(verdicts) == 1:
        return next(iter(verdicts.values()))
    wrong = [verdict for verdict in verdicts.values() if not verdict.passed]
    worst = AssetCheckSeverity.WARN if all(each.severity == AssetCheckSeverity.WARN for each in wrong) else None
    return Verdict(
        passed=not wrong,
        description="; ".join(verdict.description for verdict in wrong) or f"all {len(verdicts)} days pass",
        metadata={"days": len(verdicts), "days_failed": len(wrong)},
        severity=worst if wrong and worst else AssetCheckSeverity.ERROR,
    )


def evaluate(db: "Database", keys: Collection[AssetCheckKey], days: Sequence[date]) -> dict[AssetCheckKey, Verdicts]:
    """The result of each of these checks for each of these days."""
    found: dict[AssetCheckKey, Verdicts] = {}
    compared = [declared for declared in db.log.rollups if match_key(declared) in keys]
    if compared:
        found.update(_compare(db, compared, days))
    for declared in db.log.rollups:
        for check in declared.checks:
            if _key(declared, check.name) in keys:
                found[_key(declared, check.name)] = _violations(db, declared, check, days)
        if declared.usual_check and _key(declared, declared.usual_check) in keys:
            found[_key(declared, declared.usual_check)] = _usual(db, declared, days)
    return found


def _compare(db: "Database", compared: "Sequence[Rollup]", days: Sequence[date]) -> dict[AssetCheckKey, Verdicts]:
    from calc_analytics.rollup.figures import rows_without_a_day
    from calc_analytics.rollup.verify import verify

    with logs.record_failures("verify", db=db):
        report = verify(db, days, [declared.name for declared in compared])
    logs.log_verify(report)
    proofs = {(proof.rollup, proof.day): proof for proof in report.days}
    dayless_rows, unbalanced = rows_without_a_day(db), {each.day: str(each) for each in report.archive}
    return {
        match_key(declared): {
            day: _with_archive(
                _with_dayless_rows(_proof(proofs.get((declared.name, day))), dayless_rows), unbalanced.get(day)
            )
            for day in days
        }
        for declared in compared
    }


def _with_archive(verdict: Verdict, unbalanced: str | None) -> Verdict:
    """A day whose archived rows do not add up to what was counted fails: it could not be counted from there again."""
    if unbalanced is None:
        return verdict
    return replace(
        verdict,
        passed=False,
        description=f"{verdict.description}; {unbalanced}",
        severity=AssetCheckSeverity.ERROR,
    )


def _with_dayless_rows(verdict: Verdict, rows: int) -> Verdict:
    """Out-of-range rows belong to no partition, so every partition reports them."""
    if not rows:
        return verdict
    description = (
        f"{verdict.description}; in the whole log, {number(rows, 'row')} without a day (created_at is out of range)"
    )
    return replace(verdict, description=description, metadata={**verdict.metadata, "rows_without_a_day": rows})


def _proof(proof: "DayProof | None") -> Verdict:
    if proof is None:
        return Verdict(True, "no log rows and no statistics")
    description = proof.describe()
    description += "".join(f"; {rows:,} {name.replace('_', ' ')}" for name, rows in proof.suspects.items())
    is_frozen = proof.status == "frozen" and not proof.is_different
    severity = AssetCheckSeverity.WARN if is_frozen else AssetCheckSeverity.ERROR
    return Verdict(proof.is_proven, description, _proof_metadata(proof), severity)


def _proof_metadata(proof: "DayProof") -> dict[str, Any]:
    return {
        "finding": proof.finding,
        "difference": proof.difference,
        "log_rows": proof.log_rows,
        "stored_rows": proof.stored_rows,
        "counted_rows": proof.counted_rows,
        "duration_seconds": round(proof.seconds, 4),
        **({"deleted_rows": proof.deleted_rows} if proof.deleted_rows else {}),
        **proof.suspects,
    }


def _violations(db: "Database", declared: "Rollup", check: "Check", days: Sequence[date]) -> Verdicts:
    from calc_analytics.rollup.figures import violations

    found = violations(db, declared, check, days)
    severity = AssetCheckSeverity.WARN if check.is_warning else AssetCheckSeverity.ERROR
    return {
        day: Verdict(
            day not in found,
            _describe_violations(day, declared, check, found[day]) if day in found else "no row fails",
            {"failing_rows": found[day].rows if day in found else 0},
            severity,
        )
        for day in days
    }


def _describe_violations(day: date, declared: "Rollup", check: "Check", found: "Violations") -> str:
    """The rows that violate the check, and the log rows that explain it, if there are any."""
    where = f"{number(found.rows, 'row')} of {declared.name} ({_named(declared, found.examples, found.rows)})"
    if check.explained_in is None:
        return f"{day}: {where}: the rule is '{check.description}'"
    column = str(check.explained_in.name)
    explained = [f"{number(rows, 'row')} of {column} {value}" for value, rows in found.explained.items()]
    left = found.amount - sum(found.explained.values())
    reasons = ", ".join(explained)
    if left > 0 or not explained:
        amount = f"{number(left, 'calculation')} too many or too few" if left > 0 else "the parts do not add up"
        reasons += f"{'; and ' if reasons else ''}{amount}, and the log holds no row that explains it: the statistics "
        reasons += "were changed, or the log rows were deleted"
    return f"{day}: {reasons}; in {where}"


def _named(declared: "Rollup", examples: Sequence[dict[str, Any]], rows: int) -> str:
    """'publisher_id 0, 1' for a single key, 'publisher_id 0 hour 12:00, …' for several; the first ten."""
    if len(declared.keys) == 1:
        (key,) = declared.keys
        named = f"{key} {', '.join(str(example[key]) for example in examples)}"
    else:
        named = ", ".join(" ".join(f"{key} {example[key]}" for key in declared.keys) for example in examples)
    return f"{named} and {rows - len(examples):,} more" if rows > len(examples) else named


def _usual(db: "Database", declared: "Rollup", days: Sequence[date]) -> Verdicts:
    from calc_analytics.rollup.usual import judge_counts

    name = declared.keys[0].removesuffix("_id")
    return {
        day: Verdict(
            judged.is_usual, _describe_usual(day, judged, name), _usual_metadata(judged), AssetCheckSeverity.WARN
        )
        for day, judged in judge_counts(db, declared, days).items()
    }


def _describe_usual(day: date, judged: "Judgement", name: str) -> str:
    """'2026-03-03: publisher 7: 12 calculations, usually 900 to 1,400 on a Tuesday; …'; the ten that differ most."""
    if judged.total is None:
        return f"not judged: {judged.not_judged}"
    whole = f"all {name}s: {_compared(day, judged.total)}"
    if judged.is_usual:
        return f"as usual: {whole}"
    named = [f"{name} {each.key}: {_compared(day, each)}" for each in judged.unusual[:NAMED]]
    more = [f"{len(judged.unusual) - NAMED:,} more {name}s"] if len(judged.unusual) > NAMED else []
    return f"{day}: {'; '.join([*([whole] if judged.total.is_unusual else []), *named, *more])}"


def _compared(day: date, count: "Count") -> str:
    usual = f"{count.low:,} to {count.high:,}" if count.low != count.high else f"{count.low:,}"
    return f"{number(count.counted, 'calculation')}, usually {usual} on a {day:%A}"


def _usual_metadata(judged: "Judgement") -> dict[str, Any]:
    if judged.total is None:
        return {}
    return {
        "calculations": judged.total.counted,
        "usual_low": judged.total.low,
        "usual_high": judged.total.high,
        "unusual_publishers": len(judged.unusual),
    }
