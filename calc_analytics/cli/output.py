"""Output to a file or to standard output that is whole or not there: written aside first, then put in place."""

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from calc_analytics.errors import CalcAnalyticsError


class NotWritable(CalcAnalyticsError):
    """The output could not be written: no such folder, no permission, no space."""


@contextmanager
def written(target: Path | None) -> Iterator[IO[bytes]]:
    """Where to write; at the end it replaces the file `target`, or goes to standard output (None).

    After an error the target is as it was. A device or a pipe is written to, not replaced. Raises `NotWritable`.
    """
    place = None if target is None else Path(os.path.realpath(target))
    is_replaced = place is not None and (place.is_file() or not place.exists())
    try:
        with _beside(place) if place and is_replaced else _then_copied(place) as sink:
            yield sink
    except BrokenPipeError:
        raise
    except OSError as error:
        raise NotWritable(f"cannot write {target or 'to standard output'}: {error.strerror or error}") from None


@contextmanager
def _beside(place: Path) -> Iterator[IO[bytes]]:
    """A new file in the same folder, renamed at the end; with the rights of the one that it replaces."""
    aside = place.with_name(f".report-{secrets.token_hex(4)}")
    try:
        with open(aside, "xb") as file:
            if place.exists():
                os.chmod(aside, place.stat().st_mode & 0o777)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, place)
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


@contextmanager
def _then_copied(place: Path | None) -> Iterator[IO[bytes]]:
    """A temporary file, copied at the end to standard output (None), a device or a pipe."""
    with tempfile.TemporaryFile() as file:
        yield file
        file.seek(0)
        if place is None:
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        else:
            with open(place, "wb") as target:
                shutil.copyfileobj(file, target)
