"""What a rollup is: a target table, its keys, and its measures, each defined once.

Refresh, rebuild, verify and the live view are built from the declaration. A second rollup is a second declaration
in `ROLLUPS` and a migration that creates its target table.
"""

from dataclasses import dataclass

from calc_analytics.database.tables import calculation_logs, calculation_stats_daily


@dataclass(frozen=True)
class Measure:
    """A column of the target and the SQL aggregate over log rows that fills it.
    Measures must add up."""

    name: str
    aggregate: str
    type: str = "integer"

    @property
    def greatest(self) -> int:
        """The greatest value its column holds."""
        return {"smallint": 2**15, "integer": 2**31, "bigint": 2**63}[self.type] - 1


@dataclass(frozen=True)
class Suspect:
    """Log rows that are counted as they are, but that somebody should look at."""

    name: str
    condition: str


@dataclass(frozen=True)
class Rollup:
    """A daily rollup of `source` into `target`, one row per combination of `keys` and `date`.

    The first measure must be the number of log rows: the guard against pruned logs compares it.
    """

    target: str
    source: str
    event_time: str
    keys: tuple[str, ...]
    measures: tuple[Measure, ...]
    suspects: tuple[Suspect, ...] = ()

    @property
    def name(self) -> str:
        """The rollup's name in the state tables: its target table's."""
        return self.target

    @property
    def count(self) -> str:
        """The measure that counts log rows."""
        return self.measures[0].name

    @property
    def live_view(self) -> str:
        """The view of stored statistics plus rows not yet counted."""
        return f"{self.target}_live"

    @property
    def key_columns(self) -> str:
        """'publisher_id', ready for a select list."""
        return ", ".join(self.keys)

    @property
    def columns(self) -> str:
        """Every column of the target, in one order used everywhere."""
        return ", ".join([*self.keys, "date", *self.measure_names])

    @property
    def measure_names(self) -> list[str]:
        """The measures' column names."""
        return [measure.name for measure in self.measures]

    @property
    def aggregates(self) -> str:
        """'count(*) as total_calculations, …': the measures over log rows."""
        return self.each_measure("{aggregate} as {name}")

    @property
    def suspicions(self) -> str:
        """'count(*) filter (where …) as negative_response_times, …': the suspects among log rows, to be added last."""
        return "".join(f", count(*) filter (where {s.condition}) as {s.name}" for s in self.suspects)

    def overflows(self, value: str) -> str:
        """SQL: one of the measures does not fit its column; `value` is a pattern for it, with {name} filled in."""
        each = "{value} not between -{greatest} and {greatest}"
        return " or ".join(each.format(value=value.format(name=m.name), greatest=m.greatest) for m in self.measures)

    def each_measure(self, pattern: str, joined_by: str = ", ") -> str:
        """The pattern once per measure, with {name}, {aggregate} and {type} filled in."""
        return joined_by.join(pattern.format(name=m.name, aggregate=m.aggregate, type=m.type) for m in self.measures)


CALCULATION_STATS_DAILY = Rollup(
    target=calculation_stats_daily.name,
    source=calculation_logs.name,
    event_time="created_at",
    keys=("publisher_id",),
    measures=(
        Measure("total_calculations", "count(*)"),
        Measure("cache_hits", "count(*) filter (where cache_hit)"),
        Measure("total_response_time_ms", "coalesce(sum(response_time_ms), 0)", "bigint"),
        Measure("source_web", "count(*) filter (where source = 1)"),
        Measure("source_api", "count(*) filter (where source = 2)"),
        Measure("source_external", "count(*) filter (where source = 3)"),
    ),
    suspects=(Suspect("negative_response_times", "response_time_ms < 0"),),
)

ROLLUPS = (CALCULATION_STATS_DAILY,)
