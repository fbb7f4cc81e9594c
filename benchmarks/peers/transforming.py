"""Tools that transform tables on a schedule: dbt and SQLMesh. Each runs from PyPI, in an environment of its own."""

import subprocess
import venv
from datetime import date, timedelta
from pathlib import Path

from benchmarks.peers.peer import Peer
from benchmarks.peers.rows import DATE, TODAY, YESTERDAY
from benchmarks.peers.server import ROLE, Server
from calc_analytics.database.embedded import data_folder
from calc_analytics.rollups import STATS

# The versions that were tried.
REQUIREMENTS = {
    "dbt": ("dbt-core==1.11.16", "dbt-postgres==1.11.0"),
    "sqlmesh": ("sqlmesh[postgres]==0.236.4",),
}

# A restatement may not begin before the model does.
HISTORY_DAYS = 60


class Failed(RuntimeError):
    """A program of another environment ended with an error; its last lines are the message."""


class Transforming(Peer):
    """A project folder beside the server's data, and a process per run."""

    is_slow = True

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.folder = server.folder / self.key

    @classmethod
    def environment(cls) -> Path:
        """Where it is installed, for all runs of the comparison."""
        return data_folder() / "peers" / cls.key

    @classmethod
    def version(cls, server: Server) -> str | None:
        """Of the environment, which this makes; None where pip cannot install it."""
        python, requirements = cls.environment() / "bin" / "python", REQUIREMENTS[cls.key]
        if not python.exists():
            venv.create(cls.environment(), with_pip=True)
        install = [str(python), "-m", "pip", "install", "-q", *requirements]
        if subprocess.run(install, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode:
            return None
        return requirements[0].partition("==")[2]

    def write(self, files: dict[str, str]) -> None:
        """The project's files."""
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def run(self, *arguments: str) -> None:
        """The tool's own program, in the project's folder."""
        command = [str(self.environment() / "bin" / self.key), *arguments]
        done = subprocess.run(
            command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise Failed("\n".join(done.stdout.splitlines()[-20:]))


class Dbt(Transforming):
    """A microbatch model, by days. Today and yesterday are merged in each run (`lookback` is 1 by default)."""

    key, name, option = "dbt", "dbt-postgres, microbatch", "--with-dbt"
    package = "PyPI: dbt-postgres"

    def install(self) -> None:
        """Profile, source, model; the first run counts all days."""
        found = self.connection.execute("select min(created_at)::date from calculation_logs").fetchone()
        first = found[0] if found and found[0] else YESTERDAY
        self.write(
            {
                "dbt_project.yml": "name: peer\nversion: '1.0'\nprofile: peer\n"
                "flags: {send_anonymous_usage_stats: false}\n",
                "profiles.yml": "peer: {target: peer, outputs: {peer: {type: postgres, "
                f"host: {self.server.folder}, user: {ROLE}, password: '', port: 5432, dbname: {self.key}, "
                "schema: public, threads: 1}}}\n",
                "models/sources.yml": "sources: [{name: api, schema: public, tables: "
                "[{name: calculation_logs, config: {event_time: created_at}}]}]\n",
                "models/peer_stats.sql": "{{ config(materialized='incremental', incremental_strategy='microbatch', "
                f"event_time='date', batch_size='day', begin='{first}', unique_key=['publisher_id', 'date']) }}}}\n"
                f"select publisher_id, {DATE} as date, {STATS.measure_selects}\n"
                "from {{ source('api', 'calculation_logs') }} group by 1, 2\n",
            }
        )
        self.refresh()

    def refresh(self) -> None:
        """The command as a scheduler runs it."""
        self.run("run", "--project-dir", ".", "--profiles-dir", ".")

    def catch_up(self, first: date) -> None:
        """Days before yesterday are run again by hand."""
        end = TODAY + timedelta(days=1)
        self.run("run", "--project-dir", ".", "--profiles-dir", ".",
                 "--event-time-start", str(first), "--event-time-end", str(end))  # fmt: skip


class SqlMesh(Transforming):
    """An incremental model by time range. Its schedule allows a run every five minutes; here each refresh forces one.

    It counts no row whose time is after the beginning of the run.
    """

    key, name, option = "sqlmesh", "SQLMesh", "--with-sqlmesh"
    package = "PyPI: sqlmesh"
    target = "peer.stats"

    def install(self) -> None:
        """Configuration, model; the first plan counts all days up to the last five minutes, the run the rest."""
        first = TODAY - timedelta(days=HISTORY_DAYS)
        self.write(
            {
                "config.yaml": f"gateways: {{peer: {{connection: {{type: postgres, host: {self.server.folder}, "
                f"user: {ROLE}, password: '', port: 5432, database: {self.key}}}}}}}\ndefault_gateway: peer\n"
                f"model_defaults: {{dialect: postgres, start: '{first}'}}\ndisable_anonymized_analytics: true\n",
                "models/stats.sql": "MODEL (name peer.stats, kind INCREMENTAL_BY_TIME_RANGE (time_column date, "
                "lookback 1), cron '*/5 * * * *', interval_unit 'day', allow_partials true, "
                "grain (publisher_id, date));\n"
                f"select publisher_id, {DATE} as date, {STATS.measure_selects}\nfrom public.calculation_logs\n"
                "where created_at between @start_ts and @end_ts group by 1, 2\n",
            }
        )
        self.run("plan", "--auto-apply", "--no-prompts")
        self.refresh()

    def refresh(self) -> None:
        """The command as a scheduler runs it, whether it is due or not."""
        self.run("run", "--ignore-cron")

    def catch_up(self, first: date) -> None:
        """A restatement of the days, then the run."""
        self.run("plan", "--restate-model", "peer.stats", "--start", str(first), "--auto-apply", "--no-prompts")
        self.refresh()

    def stored_table(self) -> str:
        """The table below the view."""
        found = self.connection.execute(
            "select format('%I.%I', schemaname, tablename) from pg_tables where schemaname = 'sqlmesh__peer'"
        ).fetchone()
        assert found is not None
        return str(found[0])
