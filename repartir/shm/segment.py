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
import weakref
from typing import Any

from repartir.errors import SharedMemoryFull
from repartir.shm.clib import releasing_gil

_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000  # far more is mapped than will be written

_REMEDY = (
    "Give the container more shared memory (docker run --shm-size=1g), free what lies there, "
    "or set REPARTIR_SHM_DIR to a folder on another file system."
)

TOO_MANY_FILES = (
    "Each large shared array takes one or two descriptors: free some, share one array instead of many, or raise the limit "
    "(ulimit -n)."
)

freed_listeners: weakref.WeakSet[Any] = weakref.WeakSet()
"""Told by ``on_shared_freed()`` that a segment which other processes may have mapped is of no use any more."""


def shm_dir() -> str:
    """The folder that holds segments: ``REPARTIR_SHM_DIR``, else /dev/shm, else (macOS) the folder for temporary files."""
    chosen = os.environ.get("REPARTIR_SHM_DIR")
    if chosen:
        return chosen
    if sys.platform == "linux":
        return "/dev/shm"
    import tempfile

    return tempfile.gettempdir()


def spill_dir() -> str:
    """The folder that holds what finds no room in shared memory: ``TMPDIR``, else /tmp."""
    return os.environ.get("TMPDIR") or "/tmp"


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


def page_up(byte: int) -> int:
    """Where the first page begins that does not begin before this byte."""
    return -(-byte // mmap.PAGESIZE) * mmap.PAGESIZE


def discard(data: mmap.mmap, start: int, end: int) -> int:
    """Give the memory of the whole pages between two bytes back to the system; how many bytes it was.  Takes no lock."""
    start, end = page_up(start), end & -mmap.PAGESIZE
    if not hasattr(mmap, "MADV_REMOVE") or end <= start:
        return 0
    try:
        data.madvise(mmap.MADV_REMOVE, start, end - start)
    except OSError as exc:
        if exc.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # a file system that cannot
            raise
        return 0
    return end - start


def copy_in_place(address: int, size: int) -> None:
    """Give this process its own copy of the pages in which these bytes lie, at the same address."""
    first = address & -mmap.PAGESIZE
    length = page_up(address + size) - first
    content = ctypes.string_at(first, length)
    if _map_over(first, length, -1):
        ctypes.memmove(first, content, length)


def _map_over(address: int, size: int, fd: int) -> bool:
    """Replace a mapping by a private one of the same file, or (-1) of zeros."""
    if sys.platform != "linux":
        return False
    mmap_ = releasing_gil().mmap
    mmap_.restype = ctypes.c_void_p
    mmap_.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *([ctypes.c_int] * 3), ctypes.c_long]
    flags = mmap.MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE | (mmap.MAP_ANONYMOUS if fd < 0 else 0)
    return bool(mmap_(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0) == address)


def _map(fd: int, size: int, protection: int) -> mmap.mmap:
    if sys.version_info >= (3, 13):
        return mmap.mmap(fd, size, prot=protection, trackfd=False)  # else it keeps a second descriptor
    return mmap.mmap(fd, size, prot=protection)


def _too_many_files(exc: OSError) -> SharedMemoryFull:
    return SharedMemoryFull(f"cannot make shared memory: {exc.strerror}. {TOO_MANY_FILES}")


class Segment:
    """``size`` bytes of shared memory: ``words`` and ``data`` are two views of them.

    The mapping is never closed by hand: it goes with the last view of it.
    """

    __slots__ = ("__weakref__", "data", "fd", "size", "words")

    def __init__(self, fd: int, size: int, *, read_only: bool = False) -> None:
        self.fd = fd
        self.size = size
        self.data = _map(fd, size, mmap.PROT_READ if read_only else mmap.PROT_READ | mmap.PROT_WRITE)
        self.words = memoryview(self.data).cast("Q")

    @classmethod
    def create(cls, size: int, *, reserved: int | None = None, folder: str | None = None) -> Segment:
        """Make a segment in ``folder``, by default that for shared memory.

        Its first ``reserved`` bytes (all by default) are backed by memory at once.
        """
        folder = folder or shm_dir()
        try:
            fd = open_unlinked(folder)
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE):
                raise _too_many_files(exc) from exc
            raise SharedMemoryFull(
                f"cannot make shared memory in {folder}: {exc.strerror}. "
                "Mount a tmpfs there or set REPARTIR_SHM_DIR to a folder that can be written."
            ) from exc
        try:
            os.ftruncate(fd, size)
            reserve(fd, 0, size if reserved is None else reserved)
            return cls(fd, size)
        except BaseException as exc:
            os.close(fd)
            if isinstance(exc, OSError) and exc.errno in (errno.EMFILE, errno.ENFILE):
                raise _too_many_files(exc) from exc
            raise

    @classmethod
    def attach(cls, fd: int, *, read_only: bool = False) -> Segment:
        """Map a segment whose descriptor was passed to this process."""
        return cls(fd, os.fstat(fd).st_size, read_only=read_only)

    def pointer(self, offset: int) -> Any:
        """The address of a byte, as an argument for the C library; keeps the mapping alive."""
        return ctypes.byref(ctypes.c_char.from_buffer(self.data, offset))

    def discard(self, start: int, end: int) -> int:
        """Give the memory of the whole pages between two bytes back to the system; they read as zeros.  How much it was."""
        return discard(self.data, start, end)

    def make_private(self) -> None:
        """From now on this process alone sees what it writes here, and what it has not touched may still change.

        For a forked child: its views of the memory stay where they are.
        """
        if self.fd >= 0:
            _map_over(ctypes.addressof(ctypes.c_char.from_buffer(self.data)), self.size, self.fd)

    def close(self) -> None:
        """Close the descriptor; the mapping lives on until its last view dies."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
