"""The archive by processes of their own, in a folder and on a real S3 server: killed with -9, without disk, rights,
credentials or an endpoint. Whatever happens: one line, exit code 1, and nothing half published."""

import ctypes
import hashlib
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pandas
import psycopg
import pytest
import s3fs
from sqlalchemy import text
from sqlalchemy.engine import URL

from benchmarks.running import eventually
from calc_analytics.addresses import read_archive_url
from calc_analytics.archive.checking import check, prove_day
from calc_analytics.archive.erasing import erase_archived
from calc_analytics.archive.place import Archive
from calc_analytics.archive.store import CannotUseArchive, open_store
from calc_analytics.archive.writing import archive
from calc_analytics.processes.supervisor import free_port
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.erasure import erase
from calc_analytics.rollup.ledger import waiting_days
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.verify import verify
from calc_analytics_tests.archives import archive_in, counted_in, files_of, log_rows, manifest, record
from calc_analytics_tests.conftest import ROLE
from calc_analytics_tests.integration.test_archive import DAY, LAST, NEXT, NOON
from calc_analytics_tests.logs import FORMS, all_stored, execute, random_rows, row, stored, utc, write

KEY, SECRET = "AKIDEXAMPLE", "wJalrhunter2EXAMPLEKEY"
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An S3 server on 127.0.0.1, in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        eventually(partial(answers, port), "the S3 server answers", seconds=60)
        files(address).mkdir("logs")
        yield address
    finally:
        process.terminate()
        process.wait(10)


def answers(port: int) -> bool:
    """Whether a server listens there."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def files(endpoint: str) -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(
        key=KEY, secret=SECRET, endpoint_url=endpoint, use_listings_cache=False, skip_instance_cache=True
    )


@pytest.fixture
def bucket(endpoint: str, request: pytest.FixtureRequest) -> str:
    """An address on that server, of a prefix of the test's own."""
    return f"s3://{KEY}:{SECRET}@logs/{abs(hash(request.node.name))}?endpoint_url={endpoint}"


@pytest.fixture
def counted(db: Database, connect) -> Database:
    """Three built days of random rows, and the right to delete logs."""
    execute(db, f"grant delete on calculation_logs to {ROLE}")
    write(connect(), random_rows(random.Random(3), 600, utc(2026, 3, 1), utc(2026, 3, 4)))
    rebuild(db, [DAY, NEXT, LAST])
    return db


@pytest.fixture
def start(url: URL) -> Callable[..., "subprocess.Popen[str]"]:
    """Starts `calc-analytics` with these words in a process of its own."""

    def start_one(*words: str, address: str, prepare: Callable[[], object] | None = None):
        given = url.set(drivername="postgresql", username=ROLE).render_as_string(hide_password=False)
        return subprocess.Popen(
            [sys.executable, "-m", "calc_analytics.cli", *words],
            env={
                "DATABASE_URL": given,
                "ARCHIVE_URL": address,
                "PATH": "",
                "AWS_EC2_METADATA_DISABLED": "true",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=prepare,
        )

    return start_one


def refused(process: "subprocess.Popen[str]") -> str:
    """The one line of a process that ends with exit code 1."""
    out, error = process.communicate(timeout=120)
    assert process.returncode == 1, out + error
    assert (out, error.count("\n")) == ("", 1), out + error
    assert error.startswith("error: ")
    assert SECRET not in error
    assert "Traceback" not in error
    return error


def rows_in_bucket(place: Archive, endpoint: str, day) -> pandas.DataFrame:
    """The rows of a day as pandas reads its folder through s3fs."""
    return pandas.read_parquet(f"{place.store.address.path}/date={day}", filesystem=files(endpoint))


# Object storage.


def test_a_bucket_holds_what_a_folder_would_and_late_rows_prune_and_erase_work_there(
    counted: Database, connect, endpoint: str, bucket: str
):
    place = archive_in(counted, bucket)
    assert len(archive(place).archived) == 3
    assert archive(place).archived == []
    write(connect(), [row(NOON, publisher=77)] * 3)
    refresh(counted)
    (late,) = archive(place).archived
    assert (late.rows, late.files) == (3, 2)
    assert check(place).problems == []
    assert check(place).compared == check(place).rows
    expected = {each[0] for each in log_rows(counted, DAY)}
    assert set(rows_in_bucket(place, endpoint, DAY)["id"]) == expected
    pruned = prune(place.db, LAST, prove_archived=lambda day: prove_day(place, day))
    assert set(pruned.rows_by_day) == {DAY, NEXT}
    assert set(rows_in_bucket(place, endpoint, DAY)["id"]) == expected
    erase(counted, {"publisher_id": 3})
    old = set(files_of(place, DAY))
    assert set(erase_archived(place, {"publisher_id": 3}).rows) == {DAY, NEXT, LAST}
    assert 3 not in set(rows_in_bucket(place, endpoint, DAY)["publisher_id"])
    assert set(place.store.sizes()) == {
        *(name for day in (DAY, NEXT, LAST) for name in manifest(place, day).names),
        *(f"date={day}/_manifest.json" for day in (DAY, NEXT, LAST)),
    }
    assert len(old - set(files_of(place, DAY))) == 1
    assert check(place).problems == []
    assert verify(place.db, [DAY, NEXT, LAST]).archive == []


def test_pruned_days_are_rebuilt_from_a_bucket(counted: Database, endpoint: str, bucket: str):
    place = archive_in(counted, bucket)
    archive(place)
    prune(place.db, LAST, prove_archived=lambda day: prove_day(place, day))
    before = all_stored(counted)
    for relation in FORMS:
        execute(counted, f"delete from {relation} where date = '{DAY}'")
    archived = counted_in(place)
    report = rebuild(place.db, [DAY, NEXT], archived=archived)
    assert ({each.source for each in report.rebuilt}, report.refused) == ({"archive"}, [])
    assert all_stored(counted) == before
    assert verify(place.db, [DAY, NEXT]).difference == 0
    (name,) = files_of(place, DAY)
    files(endpoint).rm_file(f"{place.store.address.path}/{name}")
    refused_ = [str(each) for each in rebuild(place.db, [DAY], archived=archived).refused]
    assert all(f"{name} is missing" in line and SECRET not in line for line in refused_)
    assert all_stored(counted) == before


@pytest.mark.parametrize("damage", ["flip", "missing", "unknown", "manifest"])
def test_an_object_that_is_not_what_was_written_is_refused_by_name(
    counted: Database, endpoint: str, bucket: str, damage: str
):
    place, there = archive_in(counted, bucket), files(endpoint)
    archive(place)
    (name,) = files_of(place, DAY)
    path = f"{place.store.address.path}/{name}"
    if damage == "flip":
        content = there.cat_file(path)
        there.pipe_file(path, content[:500] + bytes([content[500] ^ 1]) + content[501:])
    elif damage == "missing":
        there.rm_file(path)
    elif damage == "unknown":
        path = path.replace("-001", "-009")
        there.pipe_file(path, b"unknown")
    else:
        path = f"{place.store.address.path}/date={DAY}/_manifest.json"
        there.pipe_file(path, there.cat_file(path).replace(b'"missing": 0', b'"missing": 1'))
    (problem,) = check(place).problems
    assert problem.startswith(f"s3://{path}")
    assert SECRET not in problem


def test_a_file_of_many_parts_arrives_whole_or_not_at_all(endpoint: str, bucket: str):
    store, name, block = open_store(read_archive_url(bucket, Path("/"))), f"date={DAY}/large.parquet", os.urandom(2**20)
    with store.new_file(name) as file:
        for _ in range(130):
            file.write(block)
    expected = hashlib.sha256(block * 130).hexdigest()
    with store.open(name) as content:
        assert hashlib.sha256(content.read()).hexdigest() == file.sha256 == expected
    assert store.sizes() == {name: 130 * 2**20}
    store.delete(name)

    def fail_at_the_end() -> None:
        with store.new_file(name) as file:
            for _ in range(130):
                file.write(block)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_at_the_end()
    assert store.sizes() == {}
    assert files(endpoint).call_s3("list_multipart_uploads", Bucket="logs").get("Uploads", []) == []


def test_an_upload_that_fails_in_the_middle_leaves_no_object(counted: Database, bucket: str, monkeypatch):
    place = archive_in(counted, bucket)

    def fail(*_: object) -> int:
        raise OSError(5, os.strerror(5))

    with monkeypatch.context() as patch:
        patch.setattr("calc_analytics.archive.store.HashingFile.write", fail)
        with pytest.raises(CannotUseArchive, match="Input/output error"):
            archive(place)
    assert place.store.sizes() == {}
    assert len(archive(place).archived) == 3
    assert check(place).problems == []


@pytest.mark.parametrize("problem", ["endpoint", "credentials", "bucket", "package"])
def test_a_bucket_that_cannot_be_used_is_one_line(counted: Database, start, endpoint: str, bucket: str, problem: str):
    addresses = {
        "endpoint": bucket.replace(endpoint, f"http://127.0.0.1:{free_port()}"),
        "credentials": f"s3://logs/somewhere?endpoint_url={endpoint}",
        "bucket": bucket.replace("@logs/", "@nowhere/"),
        "package": "gs://logs/somewhere",
    }
    started = time.monotonic()
    line = refused(start("archive", address=addresses[problem]))
    reasons = {
        "endpoint": "Could not connect to the endpoint",
        "credentials": "Unable to locate credentials",
        "bucket": "bucket does not exist",
        "package": "needs the package gcsfs",
    }
    assert reasons[problem] in line
    assert time.monotonic() - started < 60
    assert {record(archive_in(counted, "/"), day).manifest for day in (DAY, NEXT, LAST)} == {None}


# Kills.


@pytest.fixture
def large(db: Database, connect) -> Database:
    """A built day whose archiving takes about a second."""
    writer = connect()
    writer.execute(
        """
        insert into calculation_logs (publisher_id, locality_id, date_calculated, cache_hit, response_time_ms, source,
                                      created_at)
        select 1 + n % 200, n % 977, '2030-01-01', n % 3 = 0, n % 400, 1 + n % 3,
               timestamptz '2026-03-01 00:00Z' + n * interval '100 ms'
        from generate_series(1, 600000) n
        """
    )
    writer.commit()
    rebuild(db, [DAY])
    return db


def has_begun(place: Archive, process: subprocess.Popen) -> bool:
    """Whether the process has noted its file, or has ended."""
    return bool(record(place, DAY).leftovers) or process.poll() is not None


@pytest.mark.parametrize("is_bucket", [False, True], ids=["folder", "bucket"])
def test_kill_minus_nine_in_the_middle_leaves_the_archive_valid_and_the_next_run_completes_it(
    large: Database, start, request: pytest.FixtureRequest, tmp_path: Path, is_bucket: bool
):
    address = request.getfixturevalue("bucket") if is_bucket else str(tmp_path / "archive")
    place, rng = archive_in(large, address), random.Random(7)
    for _ in range(4):
        process = start("archive", address=address)
        eventually(partial(has_begun, place, process), "a file is begun", seconds=60)
        time.sleep(rng.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
        assert check(place).problems == []
        assert verify(place.db, [DAY]).archive == []
    process = start("archive", address=address)
    _, error = process.communicate(timeout=120)
    assert (process.returncode, error) == (0, "")
    assert record(place, DAY).rows == 600_000
    assert len(files_of(place, DAY)) == 1
    assert len(place.store.sizes()) == 2
    assert not list(tmp_path.rglob(".*"))
    assert check(place).problems == []


DAYS = [DAY + timedelta(days=n) for n in range(45)]


@pytest.fixture
def waiting(db: Database, connect, tmp_path: Path) -> Archive:
    """45 archived and pruned days, which wait for their rebuild in one rollup, as if it were new."""
    execute(db, f"grant delete on calculation_logs to {ROLE}")
    begin = utc(DAY.year, DAY.month, DAY.day)
    write(connect(), random_rows(random.Random(5), 4500, begin, begin + timedelta(days=45)))
    rebuild(db, DAYS)
    place = archive_in(db, tmp_path / "archive")
    archive(place)
    prune(place.db, DAYS[-1] + timedelta(days=1), prove_archived=lambda day: prove_day(place, day))
    return place


def forget(db: Database, rollup: str) -> None:
    """The rollup has neither statistics nor records."""
    execute(db, f"delete from {rollup}")
    execute(
        db,
        f"update rollup_days set status = 'pending', counted = null, deleted = null, timezone = null, "
        f"checksum = null where rollup = '{rollup}'",
    )


def built_at(db: Database) -> dict:
    statement = "select date, built_at from rollup_days where rollup = 'calculation_latency_daily' and status = 'built'"
    with db.engine.begin() as connection:
        return {row.date: row.built_at for row in connection.execute(text(statement))}


def test_a_rebuild_from_the_archive_that_is_killed_resumes_with_the_days_that_are_left(
    waiting: Archive, start, url: URL
):
    db, address = waiting.db, waiting.store.address.path
    before = stored(db, "calculation_latency_daily")
    forget(db, "calculation_latency_daily")
    blocker = psycopg.connect(url.set(drivername="postgresql").render_as_string(False))
    # The process waits in the middle of the third part of ten days.
    blocker.execute(
        "select from rollup_days where rollup = 'calculation_latency_daily' and date = %s for update", [DAYS[25]]
    )
    process = start("rollup", address=address)
    eventually(lambda: len(waiting_days(db)) == 25 or process.poll() is not None, "20 days are built", seconds=60)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    blocker.close()
    finished = built_at(db)
    assert waiting_days(db) == DAYS[20:]
    assert {day: at for day, at in finished.items() if day in DAYS}.keys() == set(DAYS[:20])
    process = start("rollup", address=address)
    out, error = process.communicate(timeout=120)
    assert (process.returncode, error) == (0, "")
    assert {line.split()[0] for line in out.splitlines() if "from archive" in line} == set(map(str, DAYS[20:]))
    assert waiting_days(db) == []
    assert {day: built_at(db)[day] for day in DAYS[:20]} == {day: finished[day] for day in DAYS[:20]}
    assert stored(db, "calculation_latency_daily") == before
    assert verify(db, DAYS).difference == 0


def test_a_connection_that_is_lost_while_rows_are_sent_is_replaced(large: Database, tmp_path: Path):
    place, seen = archive_in(large, tmp_path / "archive"), list[int]()

    def lose_the_connection(batch: int) -> None:
        seen.append(batch)
        if len(seen) == 1:
            execute(large, f"select pg_terminate_backend(pid) from pg_stat_activity where usename = '{ROLE}'")

    (done,) = archive(place, progress=lose_the_connection).archived
    assert (done.rows, sum(seen) > done.rows) == (600_000, True)
    assert len(place.store.sizes()) == 2
    assert check(place).problems == []


def test_two_processes_at_once_write_a_day_once(large: Database, start, tmp_path: Path):
    address = str(tmp_path / "archive")
    both = [start("archive", address=address) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    place = archive_in(large, address)
    assert len(files_of(place, DAY)) == 1
    assert check(place).problems == []
    for process in both:
        process.communicate()


# Folders that cannot be written.


def without_disk() -> None:
    """In the child: no file may have more than 100 kB, as on a disk that is full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def without_privileges() -> None:
    """In the child: root may no longer write where it has no right to."""
    libc = ctypes.CDLL(None)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def test_a_full_disk_is_one_line_and_leaves_no_file(large: Database, start, tmp_path: Path):
    line = refused(start("archive", address=str(tmp_path / "archive"), prepare=without_disk))
    assert f"cannot write {tmp_path}/archive/date={DAY}/calculation_logs-" in line
    assert "File too large" in line
    assert [path for path in (tmp_path / "archive").rglob("*") if path.is_file()] == []
    place = archive_in(large, tmp_path / "archive")
    assert [done.rows for done in archive(place).archived] == [600_000]
    assert check(place).problems == []


def test_a_read_only_folder_is_one_line(counted: Database, url: URL, start, tmp_path: Path):
    Path(str(url.query["host"])).chmod(0o711)
    folder = tmp_path / "archive"
    folder.mkdir()
    folder.chmod(0o555)
    line = refused(start("archive", address=str(folder), prepare=without_privileges))
    assert f"cannot write {folder}/date={DAY}/" in line
    assert "Permission denied" in line
    assert list(folder.iterdir()) == []


def test_a_day_of_many_rows_is_read_with_little_memory(large: Database, start, tmp_path: Path):
    process, kilobytes = start("archive", address=str(tmp_path / "archive")), 0
    while process.poll() is None:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        kilobytes = max(kilobytes, int(found[1]) if found else 0)
        time.sleep(0.01)
    assert process.communicate()[1] == ""
    assert 100_000 < kilobytes < 500_000
    place = archive_in(large, tmp_path / "archive")
    assert manifest(place, DAY).bytes / manifest(place, DAY).rows < 20


def test_a_reader_of_the_database_sees_the_new_state_or_the_old_one(counted: Database, connect, tmp_path: Path):
    place = archive_in(counted, tmp_path)
    archive(place)
    for n in range(5):
        write(connect(), [row(NOON + timedelta(seconds=n), publisher=77)])
        refresh(counted)
        archive(place)
        assert verify(place.db, [DAY]).archive == []
    with counted.engine.begin() as connection:
        held = connection.execute(text("select leftovers from rollup_archive")).scalars().all()
    assert held == [[], [], []]
    assert len(files_of(place, DAY)) == 6
