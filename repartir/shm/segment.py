"""A piece of shared memory without a name: a file in /dev/shm that is unlinked at birth.

Members inherit the mapping by fork; a fresh interpreter gets the descriptor passed and maps it again.  Nothing has a
name, so ``kill -9`` of every process leaves nothing behind, and no resource tracker is needed.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from typing import Any

from repartir.errors import SharedMemoryFull

_REMEDY = (
    "Give the container more shared memory (docker run --shm-size=1g), free what lies there, "
    "or set REPARTIR_SHM_DIR to a folder on another file system."
)


def shm_dir() -> str:
    """The folder that holds segments: ``REPARTIR_SHM_DIR``, else /dev/shm, else (macOS) the folder for temporary files."""
    chosen = os.environ.get("REPARTIR_SHM_DIR")
    if chosen:
        return chosen
    if sys.platform == "linux":
        return "/dev/shm"
    import tempfile

    return tempfile.gettempdir()


def open_unlinked(folder: str) -> int:
    """A new file in ``folder`` that has no name (any more); the descriptor is all there is of it."""
    if hasattr(os, "O_TMPFILE"):
        try:
            return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
    path = os.path.join(folder, f"repartir-{os.getpid()}-{os.urandom(8).hex()}")
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    os.unlink(path)
    return fd


def reserve(fd: int, offset: int, size: int) -> None:
    """Back ``size`` bytes at ``offset`` with memory now, so that touching them can never raise SIGBUS.

    Raises ``SharedMemoryFull`` where there is no room.
    """
    if not hasattr(os, "posix_fallocate"):
        step, end = bytes(1 << 16), offset + size
        try:
            while offset < end:
                offset += os.pwrite(fd, step[: end - offset], offset)
        except OSError as exc:
            raise SharedMemoryFull(
                f"no room for {size:,} bytes of shared memory: {exc.strerror}. {_REMEDY}"
            ) from exc
        return
    while True:
        try:
            os.posix_fallocate(fd, offset, size)
            return
        except InterruptedError:
            continue
        except OSError as exc:
            raise SharedMemoryFull(
                f"no room for {size:,} bytes of shared memory: {exc.strerror}. {_REMEDY}"
            ) from exc


class Segment:
    """``size`` bytes of shared memory: ``words`` and ``data`` are two views of them.

    The mapping is never closed by hand: it goes with the last view of it.
    """

    __slots__ = ("__weakref__", "data", "fd", "size", "words")

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        self.data = mmap.mmap(fd, size)
        self.words = memoryview(self.data).cast("Q")

    @classmethod
    def create(cls, size: int, *, reserved: int | None = None) -> Segment:
        """Make a segment, of which the first ``reserved`` bytes (all by default) are backed by memory at once."""
        folder = shm_dir()
        try:
            fd = open_unlinked(folder)
        except OSError as exc:
            raise SharedMemoryFull(
                f"cannot make shared memory in {folder}: {exc.strerror}. "
                "Mount a tmpfs there or set REPARTIR_SHM_DIR to a folder that can be written."
            ) from exc
        try:
            os.ftruncate(fd, size)
            reserve(fd, 0, size if reserved is None else reserved)
            return cls(fd, size)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def attach(cls, fd: int) -> Segment:
        """Map a segment whose descriptor was passed to this process."""
        return cls(fd, os.fstat(fd).st_size)

    def pointer(self, offset: int) -> Any:
        """The address of a byte, as an argument for the C library; keeps the mapping alive."""
        return ctypes.byref(ctypes.c_char.from_buffer(self.data, offset))

    def close(self) -> None:
        """Close the descriptor; the mapping lives on until its last view dies."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
