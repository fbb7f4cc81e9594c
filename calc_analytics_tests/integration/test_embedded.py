"""The embedded server after a kill: it starts again with any files left behind, and committed rows are there."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from benchmarks.running import eventually
from calc_analytics.database import embedded

# A backend that never waits for anything does not notice that its server is dead.
BUSY = "set client_min_messages = error; do $$ begin loop end loop; end $$"


@pytest.fixture
def pgdata() -> Iterator[Path]:
    """A server with one row, and its folder."""
    folder = Path(tempfile.mkdtemp(prefix="ca-"))
    embedded.start(folder / "pg")
    with connect(folder / "pg") as connection:
        connection.execute("create table kept as select 1 as one")
    yield folder / "pg"
    embedded.stop(folder / "pg")
    shutil.rmtree(folder)


def connect(pgdata: Path) -> psycopg.Connection:
    return psycopg.connect(host=str(pgdata), user="postgres", dbname="postgres")


def kill(pgdata: Path) -> None:
    """Its processes may take a moment to notice; this does not wait for them."""
    killed = server(pgdata)
    killed.kill()
    eventually(lambda: not lives(killed), "the end of the server")


def server(pgdata: Path) -> psutil.Process:
    return psutil.Process(int((pgdata / "postmaster.pid").read_text().splitlines()[0]))


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def assert_it_starts(pgdata: Path) -> None:
    embedded.start(pgdata)
    with connect(pgdata) as connection:
        assert connection.execute("select one from kept").fetchone() == (1,)


def test_a_killed_server_starts_again(pgdata: Path):
    kill(pgdata)
    assert_it_starts(pgdata)


def test_a_killed_server_starts_again_though_a_backend_has_not_noticed(pgdata: Path):
    program = f"import psycopg; psycopg.connect(host={str(pgdata)!r}, user='postgres').execute({BUSY!r})"
    client = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    busy = "select pid from pg_stat_activity where state = 'active' and query like '%begin loop%' and pid <> "
    try:
        with connect(pgdata) as connection:
            connection.autocommit = True
            (backend,) = eventually(lambda: connection.execute(busy + "pg_backend_pid()").fetchone(), "a busy backend")
        kill(pgdata)
        assert lives(psutil.Process(backend))
        assert_it_starts(pgdata)
    finally:
        client.kill()
        client.wait()


@pytest.mark.parametrize(
    "damage",
    [
        # After a reboot any program may have the number; this one lives.
        lambda lines: [str(os.getpid()), *lines[1:]],
        # Killed while it started.
        lambda lines: lines[:3],
        lambda lines: [],
    ],
    ids=["a stranger's pid", "half a lock file", "an empty lock file"],
)
def test_a_killed_server_starts_again_over(pgdata: Path, damage: Callable[[list[str]], list[str]]):
    kill(pgdata)
    for lock in (pgdata / "postmaster.pid", pgdata / ".s.PGSQL.5432.lock"):
        lock.write_text("\n".join(damage(lock.read_text().splitlines())))
    assert_it_starts(pgdata)


def test_a_server_that_cannot_start_says_where_to_read_why(pgdata: Path):
    kill(pgdata)
    settings = pgdata / "postgresql.conf"
    good = settings.read_text()
    settings.write_text(good + "\nshared_buffers = nonsense\n")
    with pytest.raises(embedded.EmbeddedServerFailed, match=f"read {pgdata / 'log'}"):
        embedded.start(pgdata)
    settings.write_text(good)
    assert_it_starts(pgdata)


def test_stop_ends_the_server_and_its_open_transactions(pgdata: Path):
    running = server(pgdata)
    assert lives(running)
    with connect(pgdata) as connection:
        connection.execute("insert into kept values (2)")
        embedded.stop(pgdata)
        assert not lives(running)
        connection.close()
    assert_it_starts(pgdata)


def test_a_statement_ends_with_the_process_that_asked_for_it(pgdata: Path):
    program = (
        "from sqlalchemy import text; from sqlalchemy.engine import URL\n"
        "from calc_analytics.database.engine import engine_for, transaction\n"
        f"url = URL.create('postgresql+psycopg', 'postgres', database='postgres', query={{'host': {str(pgdata)!r}}})\n"
        "with transaction(engine_for(url, 'killed')) as connection:\n"
        "    connection.execute(text('lock table kept'))"
    )
    with connect(pgdata) as holder, connect(pgdata) as watcher:
        holder.execute("lock table kept")
        watcher.autocommit = True

        def waiting() -> bool:
            statement = "select wait_event_type from pg_stat_activity where application_name = 'killed'"
            return watcher.execute(statement).fetchone() == ("Lock",)

        client = subprocess.Popen([sys.executable, "-c", program])
        eventually(waiting, "a statement that waits for the lock")
        client.kill()
        client.wait()
        eventually(lambda: not waiting(), "the end of the statement")


@pytest.mark.skipif(os.geteuid() != 0, reason="only for root does the server run as another user")
@pytest.mark.parametrize("folder", ["pg", "long" * 25 + "/pg"])
def test_for_root_too_what_was_private_stays_unreadable_for_others(folder: str):
    home = Path(tempfile.mkdtemp(prefix="ca-"))
    pgdata = home / folder
    pgdata.parent.mkdir(parents=True, exist_ok=True)
    for private in {home, pgdata.parent}:
        private.chmod(0o700)
    try:
        uri = embedded.start(pgdata).get_uri()
        assert [oct(above.stat().st_mode)[-3:] for above in (home, pgdata.parent)] == ["711", "711"]
        as_a_stranger = f"import os, psycopg; os.setgid(65534); os.setuid(65534); psycopg.connect({uri!r})"
        stranger = subprocess.run(
            [sys.executable, "-c", as_a_stranger], check=False, cwd="/", capture_output=True, text=True
        )
        assert "ermission denied" in stranger.stderr
        with psycopg.connect(uri) as connection:
            assert connection.execute("select 1").fetchone() == (1,)
    finally:
        embedded.stop(pgdata)
        shutil.rmtree(home)
