"""Files of the archive, in a local folder or on object storage through fsspec. Names are relative: 'date=…/….parquet'.

A file appears whole or not at all. In a folder it is written aside, flushed to the disk and renamed; an object appears
when its upload is completed. Errors of the file system leave as `CannotUseArchive`, in one line without secrets.
"""

import errno
import hashlib
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from calc_analytics.addresses import ArchiveUrl
from calc_analytics.errors import CalcAnalyticsError

PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
# Errors of these packages are the store's, not mistakes of this program.
_CLIENTS = ("aiobotocore", "aiohttp", "botocore", "fsspec", "gcsfs", "google", "s3fs")
# An object is uploaded in parts of this size, of which there may be 10,000, and read in blocks.
PART_BYTES, READ_BYTES = 16 * 2**20, 4 * 2**20
_TIMEOUTS = {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 2}}


class CannotUseArchive(CalcAnalyticsError):
    """The archive's folder or bucket cannot be read or written; what was published before stays valid."""


class HashingFile:
    """A file that is being written: counts its bytes and hashes them on the way. Not seekable."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash, self.bytes, self.closed = file, hashlib.sha256(), 0, False

    def write(self, data: Any) -> int:
        """Writes all of the data."""
        view = memoryview(data).cast("B")
        self._file.write(view)
        self._hash.update(view)
        self.bytes += len(view)
        return len(view)

    def tell(self) -> int:
        """The bytes written."""
        return self.bytes

    def flush(self) -> None:
        """Nothing: the store flushes when the file is whole."""

    def close(self) -> None:
        """Nothing: the store closes the file."""

    @property
    def sha256(self) -> str:
        """The checksum of what was written, in hexadecimal."""
        return self._hash.hexdigest()


class Store(ABC):
    """The archive's files. Every method raises `CannotUseArchive`."""

    def __init__(self, address: ArchiveUrl) -> None:
        self.address = address

    def path(self, name: str) -> str:
        """The file for people, without secrets."""
        return f"{self.address.shown}/{name}"

    @abstractmethod
    def new_file(self, name: str) -> Any:
        """A context manager that yields a `HashingFile`; the file appears when its block ends without an error."""

    @abstractmethod
    def publish(self, name: str, data: bytes) -> None:
        """Replaces a small file: readers see the old or the new content, also after a power failure."""

    @abstractmethod
    def open(self, name: str) -> Any:
        """A context manager that yields the file for reading at any place. Raises `FileNotFoundError` as well."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Deletes a file, and what an interrupted writing of it left; one that is not there is no error."""

    @abstractmethod
    def sizes(self, folder: str = "") -> dict[str, int]:
        """The files of a folder, or of the whole archive, and their bytes."""

    def require_writable(self) -> None:
        """Writes a file that readers ignore, and deletes it."""
        name = f"_writable-{uuid.uuid4().hex[:8]}"
        self.publish(name, b"")
        self.delete(name)

    def read(self, name: str) -> bytes | None:
        """The content of a small file; None if there is none."""
        try:
            with self.open(name) as file:
                return bytes(file.read())
        except FileNotFoundError:
            return None

    @contextmanager
    def translate_errors(self, action: str, name: str = "") -> Iterator[None]:
        """Errors of the file system, or of its client, leave as `CannotUseArchive`."""
        try:
            yield
        except Exception as error:
            if not is_of_client(error) or (action == "read" and isinstance(error, FileNotFoundError)):
                raise
            raise self._error(action, name, reason_of(error, self.address)) from error

    def _error(self, action: str, name: str, reason: str) -> CannotUseArchive:
        place = self.path(name) if name else self.address.shown
        return CannotUseArchive(f"cannot {action} {place}: {reason}. Correct ARCHIVE_URL, or what it needs, and repeat")


class Folder(Store):
    """A local folder, made when the first file is written."""

    @contextmanager
    def new_file(self, name: str) -> Iterator[HashingFile]:
        """Written aside under a name that readers ignore."""
        final, aside = self._local(name), self._aside(name)
        try:
            with self.translate_errors("write", name):
                _make_folders(final.parent)
                with open(aside, "wb") as file:
                    yield HashingFile(file)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(aside, final)
                _flush_folder(final.parent)
        finally:
            with suppress(OSError):
                aside.unlink()

    def publish(self, name: str, data: bytes) -> None:
        """Renamed over the old file."""
        with self.new_file(name) as file:
            file.write(data)

    @contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """A plain file."""
        with self.translate_errors("read", name):
            with open(self._local(name), "rb") as file:
                yield file

    def delete(self, name: str) -> None:
        """The file, and the one aside."""
        with self.translate_errors("delete", name):
            for path in (self._local(name), self._aside(name)):
                with suppress(FileNotFoundError):
                    path.unlink()

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Files that are being written have another name, which begins with a dot, and are left out."""
        root, found = Path(self.address.path), dict[str, int]()
        with self.translate_errors("list", folder):
            for path, _, names in os.walk(root / folder, onerror=_raise_unless_missing):
                for each in names:
                    file = Path(path, each)
                    if not each.startswith("."):
                        found[file.relative_to(root).as_posix()] = file.stat().st_size
        return found

    def _local(self, name: str) -> Path:
        return Path(self.address.path, name)

    def _aside(self, name: str) -> Path:
        final = self._local(name)
        return final.with_name(f".{final.name}.tmp")


class Bucket(Store):
    """A prefix in a bucket."""

    def __init__(self, address: ArchiveUrl) -> None:
        super().__init__(address)
        self._files = filesystem(address)

    @contextmanager
    def new_file(self, name: str) -> Iterator[HashingFile]:
        """Uploaded in parts; an upload that is not completed leaves no object."""
        with self.translate_errors("write", name):
            file = self._files.open(self._object(name), "wb", block_size=PART_BYTES)
            try:
                yield HashingFile(file)
            except BaseException:
                file.closed = True
                with suppress(Exception):
                    file.discard()
                raise
            file.close()

    def publish(self, name: str, data: bytes) -> None:
        """One request."""
        with self.translate_errors("write", name):
            self._files.pipe_file(self._object(name), data)

    @contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """An object that is read in blocks."""
        with self.translate_errors("read", name):
            with self._files.open(self._object(name), "rb", block_size=READ_BYTES, cache_type="readahead") as file:
                yield file

    def delete(self, name: str) -> None:
        """One object."""
        with self.translate_errors("delete", name), suppress(FileNotFoundError):
            self._files.rm_file(self._object(name))

    def sizes(self, folder: str = "") -> dict[str, int]:
        """One listing."""
        prefix = f"{self.address.path}/"
        with self.translate_errors("list", folder):
            try:
                found = self._files.find(self._object(folder), detail=True)
            except FileNotFoundError:
                return {}
        return {path.removeprefix(prefix): int(each["size"]) for path, each in found.items()}

    def _object(self, name: str) -> str:
        return f"{self.address.path}/{name}".rstrip("/")


def filesystem(address: ArchiveUrl) -> Any:
    """The fsspec file system of a bucket. Connects to nothing yet. Raises `CannotUseArchive`."""
    import fsspec

    try:
        return fsspec.filesystem(address.protocol, **_client_options(address))
    except ImportError as error:
        package = PACKAGES[address.protocol]
        raise CannotUseArchive(f"{address.shown} needs the package {package}: run 'pip install {package}'") from error


def open_store(address: ArchiveUrl) -> Store:
    """The files at that address. Connects to nothing yet."""
    return Folder(address) if address.protocol == "file" else Bucket(address)


def _client_options(address: ArchiveUrl) -> dict[str, Any]:
    options: dict[str, Any] = dict(address.options)
    region = options.pop("region", None)
    if address.protocol == "s3":
        options["config_kwargs"] = _TIMEOUTS
        options["client_kwargs"] = {"region_name": region} if region else {}
    return {**options, "use_listings_cache": False, "skip_instance_cache": True}


def _make_folders(folder: Path) -> None:
    """Makes the folder and those above it, each flushed to the disk."""
    if not folder.is_dir():
        _make_folders(folder.parent)
        folder.mkdir(exist_ok=True)
        _flush_folder(folder.parent)


def _flush_folder(folder: Path) -> None:
    """A new name is on the disk once its folder is."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _raise_unless_missing(error: OSError) -> None:
    if error.errno != errno.ENOENT:
        raise error


def is_of_client(error: Exception) -> bool:
    """Whether it is an error of the file system or of its client, and no mistake of this program."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in _CLIENTS


def reason_of(error: Exception, address: ArchiveUrl) -> str:
    """The error in one line, without the address's secrets; of a Python stack trace inside it the last line."""
    reason = str(error.strerror if isinstance(error, OSError) and error.strerror else error).strip()
    reason = reason.splitlines()[-1] if "Traceback (most recent call last)" in reason else " ".join(reason.split())
    for option, value in address.options:
        reason = reason.replace(value, "***") if option in ("key", "secret") and value else reason
    return reason.strip() or type(error).__name__
