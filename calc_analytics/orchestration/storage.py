"""Dagster's own storage: dagster-postgres, with the URL found the way the rest of the project finds it.

`dagster.yaml` names this class. Dagster's `{env: NAME}` has no default, so a plain block could not fall back to the
embedded server; this one does, and sets the driver that dagster-postgres needs.
"""

from collections.abc import Mapping
from typing import Any

from dagster._config.config_schema import UserConfigSchema
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage

from calc_analytics.config import Settings, with_driver
from calc_analytics.database.engine import dagster_url, ensure_database

# A server that vanished without a word is an error after half a minute, not after hours.
PATIENCE = {
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}


class CalcAnalyticsStorage(DagsterPostgresStorage):
    """`DagsterPostgresStorage` at DAGSTER_POSTGRES_URL, or in the database `dagster` beside DATABASE_URL."""

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
