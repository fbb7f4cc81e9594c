"""deploy/ names existing commands, ports, settings and files; its three ways to run agree."""

import importlib.util
import re
import shlex
import shutil
import subprocess
from configparser import ConfigParser
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster._core.workspace.load import location_origins_from_yaml_paths

from calc_analytics.cli.main import main
from calc_analytics.config import VARIABLES, project_root
from calc_analytics.processes.supervisor import Supervisor

SETTINGS = set(VARIABLES)
DEPLOY = project_root() / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
OURS = {name: service for name, service in COMPOSE["services"].items() if service["image"] == "calc-analytics"}
LONG_RUNNING = ("code-server", "webserver", "daemon", "service")
PORTS = {"webserver": 3000, "code-server": 4000, "service": 8080}
UNITS = {path.stem.removeprefix("calc-analytics-"): path for path in (DEPLOY / "systemd").glob("*.service")}
AS_UNIT = {"code-server": "code-server", "webserver": "webserver", "daemon": "daemon", "service": "http"}


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continued lines joined, comments left out."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text())
    joined = re.sub(r"\\\n\s*", " ", text)
    return [(line.split()[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def last_stage() -> list[tuple[str, str]]:
    all_ = instructions()
    return all_[max(n for n, (name, _) in enumerate(all_) if name == "FROM") :]


def image_environment() -> dict[str, str]:
    found: dict[str, str] = {}
    for name, rest in last_stage():
        if name == "ENV":
            found.update(pair.split("=", 1) for pair in shlex.split(rest))
    return found


def exists(command: list[str]) -> bool:
    """Whether the program, and the module or subcommand that it is given, is one that the project installs."""
    scripts = {script.name for script in entry_points(group="console_scripts")}
    if command[:2] == ["python", "-m"]:
        return importlib.util.find_spec(command[2]) is not None
    if command[0] == "calc-analytics":
        return command[1] in main.commands
    return command[0] in scripts


def port_of(command: list[str]) -> int | None:
    return int(command[command.index("--port") + 1]) if "--port" in command else None


def test_the_image_is_built_in_stages_with_pins_and_bytecode_and_does_not_run_as_root():
    all_ = instructions()
    assert [name for name, _ in all_].count("FROM") == 2
    installs = [rest for name, rest in all_ if name == "RUN" and "pip install" in rest]
    assert installs
    assert all("-c constraints.txt" in rest and "--no-compile" not in rest for rest in installs)
    assert any("compileall" in rest for name, rest in all_ if name == "RUN")
    assert not any("PYTHONDONTWRITEBYTECODE" in rest for _, rest in all_)
    (user,) = [rest for name, rest in last_stage() if name == "USER"]
    assert user.isdecimal(), "Kubernetes' runAsNonRoot wants a number"
    assert int(user) > 0


def test_the_image_gets_only_what_it_copies_and_all_of_it_is_there():
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignore[0] == "*"
    copies = [rest.split()[:-1] for name, rest in instructions() if name == "COPY" and "--from" not in rest]
    copied = [source for sources in copies for source in sources]
    for source in copied:
        assert f"!{source.removeprefix('./')}" in ignore
        assert (project_root() / source).exists()
    assert {line[1:] for line in ignore if line.startswith("!")} == {source.removeprefix("./") for source in copied}


def test_the_images_environment_is_the_supervisors(monkeypatch):
    monkeypatch.delenv("DAGSTER_EVENT_BATCH_SIZE", raising=False)
    theirs, ours = Supervisor.__dict__["_environment"](Supervisor.__new__(Supervisor)), image_environment()
    for name in ("DAGSTER_GRPC_SHUTDOWN_GRACE_PERIOD", "DAGSTER_EVENT_BATCH_SIZE", "PYTHONUNBUFFERED"):
        assert ours[name] == theirs[name]
    (folder,) = [rest for name, rest in last_stage() if name == "WORKDIR"]
    assert ours["DAGSTER_HOME"] == folder, "settings, logs and dagster.yaml are looked for in the current folder"


def test_the_images_own_command_is_the_code_server():
    (command,) = [yaml.safe_load(rest) for name, rest in last_stage() if name == "CMD"]
    assert command == OURS["code-server"]["command"]


@pytest.mark.parametrize("name", OURS)
def test_each_command_of_compose_exists(name: str):
    assert exists(OURS[name]["command"])


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_each_process_is_restarted_watched_and_waits_for_the_migrations(name: str):
    service = OURS[name]
    assert service["restart"] == "unless-stopped"
    assert service["init"], "run workers that are left over are reaped"
    assert service["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    kind, *test = service["healthcheck"]["test"]
    assert kind == "CMD"
    assert exists(test) or test[:2] == ["python", "-c"]
    if name in PORTS:
        assert port_of(service["command"]) == PORTS[name]
        assert str(PORTS[name]) in " ".join(test)
    assert {volume.split(":")[1] for volume in service["volumes"]} == {
        f"{image_environment()['DAGSTER_HOME']}/storage",
    }


def test_the_database_is_ready_before_the_migrations_begin():
    assert OURS["migrate"]["depends_on"]["database"]["condition"] == "service_healthy"
    database = COMPOSE["services"]["database"]
    assert database["healthcheck"]["test"][1] == "pg_isready"
    major = int(database["image"].split(":")[1])
    # From 18 on, the image keeps its data one folder up from where it was.
    assert database["volumes"] == ["database:/var/lib/postgresql"]
    assert 15 <= major <= 18


def test_what_has_no_authentication_is_published_on_this_machine_only():
    published = {name: service.get("ports", []) for name, service in COMPOSE["services"].items()}
    assert published == {
        **{name: [] for name in published},
        "webserver": ["127.0.0.1:3000:3000"],
        "service": ["127.0.0.1:8080:8080"],
    }
    exposed = [int(port) for name, rest in last_stage() if name == "EXPOSE" for port in rest.split()]
    assert sorted(exposed) == sorted(PORTS.values())


def test_compose_passes_every_setting_on_and_no_other():
    for service in OURS.values():
        assert set(service["environment"]) == set(SETTINGS)
        for name, value in service["environment"].items():
            assert value.startswith(f"${{{name}:-")
    example = (DEPLOY / "compose.env.example").read_text()
    assert set(re.findall(r"(?m)^#? ?([A-Z_]+)=", example)) <= {*SETTINGS, "POSTGRES_PASSWORD"}
    assert "POSTGRES_PASSWORD=\n" in example, "no password in the repository"


def test_compose_itself_reads_the_file_where_it_is_installed():
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("no docker compose on this machine")
    done = subprocess.run(
        [docker, "compose", "-f", str(DEPLOY / "compose.yaml"), "config", "--quiet"],
        env={"POSTGRES_PASSWORD": "x", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("path", "host"), [("workspace.yaml", "code-server"), ("systemd/workspace.yaml", "127.0.0.1")])
def test_webserver_and_daemon_are_pointed_at_the_code_server(path: str, host: str):
    (origin,) = location_origins_from_yaml_paths([str(DEPLOY / path)])
    assert (origin.host, origin.port, origin.location_name) == (host, PORTS["code-server"], "calc_analytics")


def unit(name: str) -> dict[str, list[str]]:
    """A unit's [Service] section; a key may come several times."""

    class Several(dict):
        def __setitem__(self, key: str, value: Any) -> None:
            if isinstance(value, list) and key in self:
                self[key].extend(value)
            else:
                super().__setitem__(key, value)

    parser = ConfigParser(dict_type=Several, strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS[name])
    return {key: value.split("\n") for key, value in parser["Service"].items()}


def test_the_units_are_those_of_the_target():
    target = (DEPLOY / "systemd" / "calc-analytics.target").read_text()
    wanted = re.findall(r"calc-analytics-([a-z-]+)\.service", target)
    assert set(wanted) == set(UNITS) == set(AS_UNIT.values())


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_a_unit_runs_what_compose_runs_but_listens_on_this_machine_only(name: str):
    found = unit(AS_UNIT[name])
    program, *arguments = shlex.split(found["ExecStart"][0])
    folder, file = program.rsplit("/", 1)
    assert folder == "/opt/calc-analytics/bin"
    assert [file, *arguments] == [word.replace("0.0.0.0", "127.0.0.1") for word in OURS[name]["command"]]
    given = dict(pair.split("=", 1) for line in found["Environment"] for pair in shlex.split(line))
    image = {name: value for name, value in image_environment().items() if name != "PATH"}
    assert given == {name: value.replace("calc_analytics", "calc-analytics") for name, value in image.items()}
    assert found["WorkingDirectory"] == [given["DAGSTER_HOME"]]
    assert found["User"] != ["root"]
    assert found["Restart"] == ["always"]


def test_systemd_itself_reports_nothing_about_the_units(tmp_path: Path):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd on this machine")
    for path in (DEPLOY / "systemd").glob("calc-analytics*"):
        # The program is not installed here.
        (tmp_path / path.name).write_text(re.sub(r"/opt/calc-analytics/bin/\S+", "/bin/true", path.read_text()))
    files = sorted(str(path) for path in tmp_path.iterdir())
    done = subprocess.run([analyze, "verify", *files], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


VALUES: dict[str, Any] = yaml.safe_load((DEPLOY / "kubernetes" / "values.yaml").read_text())
DEPLOYMENT, SERVICE = yaml.safe_load_all((DEPLOY / "kubernetes" / "http-service.yaml").read_text())


def test_the_chart_runs_the_images_own_command():
    (deployment,) = VALUES["dagster-user-deployments"]["deployments"]
    assert not {"dagsterApiGrpcArgs", "codeServerArgs"} & set(deployment)
    assert deployment["port"] == PORTS["code-server"]


def test_the_charts_dagster_yaml_says_what_ours_says():
    ours = yaml.safe_load((project_root() / "dagster.yaml").read_text())
    daemon = VALUES["dagsterDaemon"]
    assert daemon["sensors"] == {
        "useThreads": ours["sensors"]["use_threads"],
        "numWorkers": ours["sensors"]["num_workers"],
    }
    monitoring, retries = ours["run_monitoring"], ours["run_retries"]
    assert daemon["runMonitoring"] == {
        "enabled": monitoring["enabled"],
        "startTimeoutSeconds": monitoring["start_timeout_seconds"],
        "pollIntervalSeconds": monitoring["poll_interval_seconds"],
    }
    assert daemon["runRetries"] == {
        "enabled": retries["enabled"],
        "maxRetries": retries["max_retries"],
        "retryOnAssetOrOpFailure": retries["retry_on_asset_or_op_failure"],
    }
    for kind in ("schedule", "sensor"):
        assert VALUES["retention"][kind]["purgeAfterDays"] == ours["retention"][kind]["purge_after_days"]


def test_the_http_service_of_kubernetes_is_that_of_compose():
    (container,) = DEPLOYMENT["spec"]["template"]["spec"]["containers"]
    assert [*container["args"], "--ui-port", str(PORTS["webserver"])] == OURS["service"]["command"]
    assert container["ports"][0]["containerPort"] == SERVICE["spec"]["ports"][0]["port"] == PORTS["service"]
    assert SERVICE["spec"]["selector"] == DEPLOYMENT["spec"]["selector"]["matchLabels"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"
    (code,) = VALUES["dagster-user-deployments"]["deployments"]
    assert container["image"] == f"{code['image']['repository']}:{code['image']['tag']}"


def test_every_file_is_spoken_of_in_the_folders_readme():
    readme = (DEPLOY / "README.md").read_text()
    for path in sorted(DEPLOY.rglob("*")):
        if path.parent in (DEPLOY, DEPLOY / "kubernetes") and path.is_file() and path.name != "README.md":
            assert path.name in readme, path


def test_the_password_of_compose_cannot_be_committed():
    assert "/deploy/.env" in (project_root() / ".gitignore").read_text().splitlines()
