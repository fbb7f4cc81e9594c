"""Dagster's own storage: dagster-postgres, with the URL found the way the rest of the project finds it.

`dagster.yaml` names this class. Dagster's `{env: NAME}` has no default, so a plain block could not fall back to the
embedded server; this one does, and sets the driver that dagster-postgres needs. And its event log keeps what checks
say of a partition outside of runs, which Dagster's own can do only once.
"""

from collections.abc import Mapping
from typing import Any

from dagster import AssetCheckEvaluation, EventLogEntry
from dagster._config.config_schema import UserConfigSchema
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage, PostgresEventLogStorage
from dagster_shared.record import replace
from sqlalchemy import update

from calc_analytics.config import Settings, with_driver
from calc_analytics.database.engine import dagster_url, ensure_database
from calc_analytics.orchestration.evaluations import targets

# A server that vanished without a word is an error after half a minute, not after hours.
PATIENCE = {
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}


class CalcAnalyticsEventLog(PostgresEventLogStorage):
    """Takes any number of evaluations per check and partition from outside of runs: the latest is the partition's.

    The unique index on asset_check_executions allows one per run and partition, and all of these have the same, empty
    run. So the one before gives up its partition, and stays in the history.
    """

    def store_event(self, event: EventLogEntry) -> None:
        """As Dagster's; an evaluation from outside of runs speaks of its partition's latest materialization."""
        said = event.dagster_event.event_specific_data if event.dagster_event else None
        if isinstance(said, AssetCheckEvaluation) and said.partition and not event.run_id:
            event = self._with_target(event, said, said.partition)
            self._release(said, said.partition)
        super().store_event(event)

    def _with_target(self, event: EventLogEntry, said: AssetCheckEvaluation, partition: str) -> EventLogEntry:
        target = said.target_materialization_data or targets(self, said.asset_key, [partition]).get(partition)
        said = replace(said, target_materialization_data=target)
        return event._replace(dagster_event=event.get_dagster_event()._replace(event_specific_data=said))

    def _release(self, said: AssetCheckEvaluation, partition: str) -> None:
        executions = AssetCheckExecutionsTable.c
        with self.index_connection() as connection:
            connection.execute(
                update(AssetCheckExecutionsTable)
                .where(
                    executions.asset_key == said.asset_key.to_string(),
                    executions.check_name == said.check_name,
                    executions.run_id == "",
                    executions.partition == partition,
                )
                .values(partition=None)
            )


class CalcAnalyticsStorage(DagsterPostgresStorage):
    """`DagsterPostgresStorage` at DAGSTER_POSTGRES_URL, or in the database `dagster` beside DATABASE_URL."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._event_log_storage = CalcAnalyticsEventLog(self.postgres_url, self.should_autocreate_tables)

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Takes no configuration: the environment says it all."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> "CalcAnalyticsStorage":
        """Called by Dagster when an instance is loaded; creates the database if it is missing."""
        url = dagster_url(Settings.from_environment())
        ensure_database(url)
        url = with_driver(url, "psycopg2").update_query_dict({**PATIENCE, **url.query})
        return cls(url.render_as_string(hide_password=False), inst_data=inst_data)
