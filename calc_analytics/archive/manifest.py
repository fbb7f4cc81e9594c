"""A day's manifest: which files hold its rows, with their checksums, and up to which snapshot its rows are counted.

It lies beside the files under a name that Spark, DuckDB and pandas ignore, and is published last. The database holds
the same text: a manifest that it does not know, or a file that does not fit, is refused by name.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime, timezone
from typing import Any

from calc_analytics.archive.store import Store
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.ledger import ArchivedDay

# Changes with the files' columns or with the meaning of the manifest.
FORMAT = 1
NAME = "_manifest.json"


class DamagedArchive(CalcAnalyticsError):
    """A file of the archive is missing, is not what was written, or is not known; it is refused by its name."""


@dataclass(frozen=True)
class ArchivedFile:
    """A Parquet file of a day: its name, the rows in it, its size in bytes and its checksum (hexadecimal)."""

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What is published of a day. `missing` rows were counted, and deleted before they were archived."""

    log: str
    day: date
    timezone: str
    snapshot: str | None
    missing: int
    files: tuple[ArchivedFile, ...]

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(file.rows for file in self.files)

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files)

    @property
    def names(self) -> list[str]:
        """The files' names, relative to the archive."""
        return [f"{folder_of(self.day)}/{file.name}" for file in self.files]

    def to_text(self) -> str:
        """As it is published."""
        content = {
            "format": FORMAT,
            "log": self.log,
            "date": str(self.day),
            "timezone": self.timezone,
            "snapshot": self.snapshot,
            "rows": self.rows,
            "missing": self.missing,
            "written_at": datetime.now(timezone.utc).isoformat(timespec="microseconds"),
            "files": [asdict(file) for file in self.files],
        }
        return json.dumps(content, indent=1) + "\n"


def folder_of(day: date) -> str:
    """The day's folder: 'date=2026-03-01'."""
    return f"date={day}"


def name_of_manifest(day: date) -> str:
    """The manifest's name, relative to the archive."""
    return f"{folder_of(day)}/{NAME}"


def parse(store: Store, day: date, text: str | bytes) -> Manifest:
    """The manifest in that text; `DamagedArchive` for another format, or for what is none."""
    path = store.path(name_of_manifest(day))
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise DamagedArchive(
                f"{path} has the format {content['format']}, but this version reads {FORMAT}: use the version that "
                "wrote it"
            )
        return _manifest(content)
    except (ValueError, KeyError, TypeError):
        raise DamagedArchive(f"{path} is damaged: it is no manifest. Restore it from a backup of the archive") from None


def _manifest(content: dict[str, Any]) -> Manifest:
    files = tuple(ArchivedFile(**file) for file in content["files"])
    day = date.fromisoformat(content["date"])
    return Manifest(content["log"], day, content["timezone"], content["snapshot"], content["missing"], files)


def known_manifest(store: Store, db: Database, record: ArchivedDay) -> Manifest | None:
    """The day's manifest according to the database; None if nothing of the day is archived.

    Raises `DamagedArchive` if what is published is missing, damaged, or unknown: of another log, zone, format or
    database. A manifest that an interrupted operation published, and never recorded, is not part of the archive.
    """
    published = store.read(name_of_manifest(record.day))
    if record.manifest is None:
        if published is not None:
            _require_own_leftover(store, record, parse(store, record.day, published))
        return None
    known = parse(store, record.day, record.manifest)
    _require_fit(store, db, known)
    if published is None:
        path = store.path(name_of_manifest(record.day))
        raise DamagedArchive(f"{path} is missing: restore it from a backup of the archive, or correct ARCHIVE_URL")
    if published.decode(errors="replace") != record.manifest:
        _require_own_leftover(store, record, parse(store, record.day, published))
    return known


def _require_fit(store: Store, db: Database, manifest: Manifest) -> None:
    path = store.path(name_of_manifest(manifest.day))
    if manifest.log != db.log.name:
        raise DamagedArchive(f"{path} is of the log {manifest.log}, not of {db.log.name}: correct ARCHIVE_URL")
    if manifest.timezone != db.timezone:
        raise DamagedArchive(
            f"{path} holds a day of the time zone {manifest.timezone}, but days are now those of {db.timezone}: run "
            "'calc-analytics archive --forget' and set ARCHIVE_URL to another place. The files stay"
        )


def _require_own_leftover(store: Store, record: ArchivedDay, published: Manifest) -> None:
    """A manifest that the database does not hold must name a file that the database knows was being written, or none
    but known ones."""
    known = set(record.leftovers)
    if record.manifest is not None:
        known.update(parse(store, record.day, record.manifest).names)
    if record.leftovers and set(published.names) <= known:
        return
    path = store.path(name_of_manifest(record.day))
    if record.manifest is not None:
        raise DamagedArchive(
            f"{path} is not the manifest that this database holds: the database was restored since, or another one "
            "writes to this place. Put the manifest back that rollup_archive holds; do not move the folder away, its "
            "files may be the only copy"
        )
    raise DamagedArchive(
        f"{path} is not known to this database: another database's archive, or one from before a restore, is there. "
        "Set ARCHIVE_URL to another place, or move that folder away"
    )


def next_number(files: Sequence[ArchivedFile]) -> int:
    """The number in the name of the day's next file."""
    return 1 + max((int(file.name.removesuffix(".parquet").rsplit("-", 1)[-1]) for file in files), default=0)
