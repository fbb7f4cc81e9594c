"""Every command checks all settings first, and says in one line what is wrong with them; so does the code location."""

import os
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from calc_analytics.cli.main import main
from calc_analytics.config import InvalidSetting, project_root
from calc_analytics.definitions import defs

ARGUMENTS = {"prune": ["--older-than", "9", "--yes"], "rebase": ["--yes"], "widen": ["source", "--yes"]}
ARGUMENTS["erase"] = ["--publisher", "1"]
TOMORROW = str(date.today() + timedelta(days=2))
WRONG = {"ROLLUP_CRON": "99 * * * *", "ROLLUP_START_DATE": TOMORROW, "ROLLUPS": "nothing", "LOG_LEVEL": "loud"}


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No command gets as far as a database."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://me@127.0.0.1:1/nowhere")


@pytest.mark.parametrize("command", sorted(set(main.commands)))
@pytest.mark.parametrize("name", ["ROLLUP_CRON", "ROLLUP_START_DATE"])
def test_every_command_refuses_a_setting_that_is_not_usable(monkeypatch: pytest.MonkeyPatch, command: str, name: str):
    monkeypatch.setenv(name, WRONG[name])
    done = CliRunner().invoke(main, [command, *ARGUMENTS.get(command, [])])
    assert done.exit_code == 1
    assert done.output.startswith(f"error: {name}: '{WRONG[name]}' is not usable: ")
    assert done.output.count("\n") == 1


def test_the_service_does_not_start_with_a_rollup_that_is_not_declared(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ROLLUPS", "nothing")
    done = CliRunner().invoke(main, ["serve"])
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert "there is no rollup 'nothing'" in done.output


@pytest.mark.parametrize("name", WRONG)
def test_the_code_location_refuses_it_too(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv(name, WRONG[name])
    with pytest.raises(InvalidSetting, match=f"{name}: '"):
        defs()


def test_dagsters_own_command_names_the_setting(tmp_path: Path):
    environment = {**os.environ, "ROLLUP_CRON": WRONG["ROLLUP_CRON"], "DAGSTER_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "dagster", "definitions", "validate", "-m", "calc_analytics.definitions"]
    done = subprocess.run(command, cwd=project_root(), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "ROLLUP_CRON: '99 * * * *'" in line]
    assert any("is not usable: '99' is not a minute, which goes from 0 to 59" in line for line in lines)
