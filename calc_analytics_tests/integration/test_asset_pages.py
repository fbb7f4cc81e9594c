"""What an operator reads on the pages of the assets: columns, figures, what to expect of a tick."""

import warnings
from datetime import date, timedelta
from pathlib import Path

import pytest
from dagster import AssetKey, Definitions
from sqlalchemy import create_engine, text

from calc_analytics.database.comments import describe_tables
from calc_analytics.database.tables import metadata as tables
from calc_analytics.definitions import defs
from calc_analytics.rollup.figures import day_ratios, day_totals
from calc_analytics.rollup.journal import rebuild_seconds
from calc_analytics.rollup.ledger import days_built_by_others
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollups import LATENCY, LOG, STATS
from calc_analytics_tests.logs import OWNER, execute, row, utc, write

DAY = date(2026, 3, 1)


def specs(location: Definitions) -> dict:
    return {spec.key.to_user_string(): spec for spec in location.resolve_all_asset_specs()}


@pytest.mark.parametrize("name", [LOG.name, *LOG.names, "publisher_usage_summary"])
def test_the_page_of_an_asset_describes_each_column_as_the_database_does(location, engine, name: str):
    spec = specs(location)[name]
    schema = spec.metadata["dagster/column_schema"]
    shown = {column.name: (column.type, column.description) for column in schema.columns}
    statement = text(
        "select attname, col_description(attrelid, attnum) as comment, "
        "case format_type(atttypid, atttypmod) when 'timestamp with time zone' then 'timestamp with time zone' "
        "else format_type(atttypid, atttypmod) end as type "
        "from pg_attribute where attrelid = to_regclass(:name) and attnum > 0 and attname <> 'xact_id'"
    )
    with engine.begin() as connection:
        stored = {each.attname: (each.type, each.comment) for each in connection.execute(statement, {"name": name})}
        comment = connection.execute(text("select obj_description(to_regclass(:name))"), {"name": name}).scalar()
    assert shown == stored
    assert all(description for column, (_, description) in shown.items() if column != "id")
    assert spec.description.lower().startswith(comment.removeprefix("calc_analytics: ").split(";")[0].lower())


def test_every_asset_has_owner_tags_kind_runbook_and_the_rollups_a_version_and_their_source(location):
    for name, spec in specs(location).items():
        assert (spec.owners, "postgres" in spec.kinds, set(spec.tags) >= {"layer"}) == ([spec.owners[0]], True, True)
        if name in LOG.names:
            assert spec.code_version == LOG.rollup(name).version
        if name != LOG.name:
            runbook, function = spec.metadata["dagster/code_references"].code_references
            assert Path(runbook.file_path).is_file()
            assert Path(function.file_path).parent.name == "orchestration"


def test_a_version_changes_with_what_is_counted():
    assert len({each.version for each in LOG.rollups}) == len(LOG.rollups)


def test_sensor_schedules_and_jobs_describe_what_how_often_and_what_a_grey_tick_means(location):
    assert "grey (skipped) tick" in location.resolve_sensor_def("new_log_batches").description
    for name in ("hourly_rollup", "daily_housekeeping"):
        assert "per tick" in location.resolve_schedule_def(name).description
    for name in ("rollup_job", "housekeeping"):
        assert len(location.resolve_job_def(name).description) > 100


def test_loading_is_quiet(database):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        defs()
    assert [str(each.message) for each in found if each.category.__module__.startswith("dagster")] == []


def test_comments_of_the_api_stay_and_ours_follow(engine, db):
    """Set by the owner of the tables, as `migrate` is."""
    execute(db, "comment on table calculation_logs is 'the API''s word'")
    execute(db, "comment on column calculation_stats_daily.cache_hits is 'hits'")
    execute(db, "comment on column calculation_stats_hourly.cache_hits is 'old words'")
    execute(db, "comment on table calculation_stats_daily is null")
    owner = create_engine(engine.url.set(**OWNER))
    with owner.begin() as connection:
        describe_tables(connection)
        describe_tables(connection)
        found = connection.execute(
            text(
                "select obj_description(to_regclass('calculation_logs')), "
                "obj_description(to_regclass('calculation_stats_daily')), "
                "col_description(to_regclass('calculation_stats_daily'), (select attnum from pg_attribute where "
                "attrelid = to_regclass('calculation_stats_daily') and attname = 'cache_hits')), "
                "col_description(to_regclass('calculation_stats_hourly'), (select attnum from pg_attribute where "
                "attrelid = to_regclass('calculation_stats_hourly') and attname = 'cache_hits'))"
            )
        ).one()
    stats = tables.tables["calculation_stats_daily"]
    owner.dispose()
    ours = tables.tables["calculation_stats_hourly"].c.cache_hits.comment
    assert tuple(found) == ("the API's word", stats.comment, "hits", ours)


def ratios(db) -> dict[str, float]:
    return day_ratios(db, STATS, day_totals(db, STATS, [DAY])).get(DAY, {})


def test_the_average_response_time_is_over_the_rows_that_have_one(db, connect):
    at = utc(2026, 3, 1, 12)
    slow = [row(at, response_time_ms=300), row(at, response_time_ms=100)]
    write(connect(), [*slow, *[row(at, response_time_ms=None)] * 8])
    rebuild(db, [DAY])
    assert ratios(db) == {"cache_hit_ratio": 0.0, "average_response_time_ms": 200.0}


def test_without_a_measured_row_or_the_histogram_there_is_no_average(db, connect):
    write(connect(), [row(utc(2026, 3, 1, 12), response_time_ms=None)])
    rebuild(db, [DAY])
    assert "average_response_time_ms" not in ratios(db)
    write(connect(), [row(utc(2026, 3, 1, 12), response_time_ms=50)])
    rebuild(db, [DAY])
    assert ratios(db)["average_response_time_ms"] == 50.0
    execute(db, f"update rollup_days set status = 'stale' where rollup = '{LATENCY.name}'")
    assert "average_response_time_ms" not in ratios(db)


def test_days_of_one_rebuild_share_its_duration(db, connect):
    days = [DAY + timedelta(days=n) for n in range(4)]
    write(connect(), [row(utc(2026, 3, day.day, 12)) for day in days])
    rebuild(db, days)
    execute(db, "update rollup_days set built_by = 'calc_analytics cli'")
    execute(db, "update rollup_journal set seconds = 2 where operation = 'rebuild'")
    built = days_built_by_others(db, None, 200)
    assert len(built) == len(days) * len(LOG.rollups)
    assert rebuild_seconds(db, built) == {(day, name): 0.5 for day in days for name in LOG.names}
    rebuild(db, days[:1])
    later = rebuild_seconds(db, days_built_by_others(db, None, 200))
    assert {later[days[1], name] for name in LOG.names} == {0.5}, "the entry of its own rebuild"
    execute(db, "delete from rollup_journal")
    assert rebuild_seconds(db, built) == {}


def test_each_rollup_reports_its_figures_on_the_page_of_a_partition(location, instance, db, connect):
    write(connect(), [row(utc(2026, 3, 1, 12))] * 3)
    job = location.resolve_job_def("rollup_job")
    assert job.execute_in_process(instance=instance, partition_key=str(DAY)).success
    for rollup in LOG.rollups:
        event = instance.get_latest_materialization_event(AssetKey(rollup.name)).asset_materialization
        shown = {name: value.value for name, value in event.metadata.items()}
        assert shown[rollup.count] == 3
        assert "rows" not in shown
        assert set(shown) >= {each.name for each in rollup.ratios}
