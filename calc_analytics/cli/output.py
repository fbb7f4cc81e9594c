"""Output to a file or to standard output: a temporary file first, which replaces the target when it is complete."""

import errno
import io
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

from calc_analytics.errors import CalcAnalyticsError

# A block of which each OSError is `NotWritable`.
Writing = Callable[[], AbstractContextManager[None]]


class NotWritable(CalcAnalyticsError):
    """The output could not be written: no such folder, no permission, no space."""


@contextmanager
def open_output(target: Path | None) -> Iterator[IO[bytes]]:
    """Where to write; at the end it replaces the file `target`, or goes to standard output (None).

    After an error the target is as it was. A device or a pipe is written to, not replaced. Raises `NotWritable`; other
    errors of the caller's block pass as they are.
    """
    place = None if target is None else Path(os.path.realpath(target))
    is_replaced = place is not None and (place.is_file() or not place.exists())
    writing = partial(_name_errors, target)
    with _open_beside(place, writing) if place and is_replaced else _open_temporary(place, writing) as sink:
        yield sink


@contextmanager
def _name_errors(target: Path | None) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise NotWritable(f"cannot write {target or 'to standard output'}: {error.strerror or error}") from None


class _Sink(io.BufferedRandom):
    """A new file, whose errors are `NotWritable`."""

    def __init__(self, create: Callable[[], Any], writing: Writing) -> None:
        with writing():
            super().__init__(create())
        self._writing = writing

    def write(self, data: Any, /) -> int:
        """As any file's."""
        with self._writing():
            return super().write(data)

    def flush(self) -> None:
        """As any file's."""
        with self._writing():
            super().flush()


@contextmanager
def _open_beside(place: Path, writing: Writing) -> Iterator[IO[bytes]]:
    """A new file in the same folder, renamed at the end; with the rights of the one that it replaces."""
    temporary = place.with_name(f".report-{secrets.token_hex(4)}")
    try:
        with _Sink(partial(io.FileIO, temporary, "x+"), writing) as sink:
            with writing():
                if place.exists():
                    os.chmod(temporary, place.stat().st_mode & 0o777)
            yield sink
            with writing():
                sink.flush()
                os.fsync(sink.fileno())
        with writing():
            os.replace(temporary, place)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def _open_temporary(place: Path | None, writing: Writing) -> Iterator[IO[bytes]]:
    """A temporary file, copied at the end to standard output (None), a device or a pipe."""
    with _Sink(partial(tempfile.TemporaryFile, buffering=0), writing) as sink:
        yield sink
        with writing():
            sink.seek(0)
            _copy(sink, place)


def _copy(file: IO[bytes], place: Path | None) -> None:
    if place is None:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "it is closed")
        shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    else:
        with open(place, "wb") as target:
            shutil.copyfileobj(file, target)
