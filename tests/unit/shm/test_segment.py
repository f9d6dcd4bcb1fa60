from __future__ import annotations

import errno
import gc
import mmap
import os
import resource
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from repartir.errors import SharedMemoryFull
from repartir.shm import segment as segment_module
from repartir.shm.segment import Segment, open_unlinked, reserve, shm_dir
from tests.helpers import package_root
from tests.shared import Forked


def test_words_and_data_are_the_same_memory() -> None:
    segment = Segment.create(8192)
    assert (segment.size, len(segment.data), len(segment.words)) == (8192, 8192, 1024)
    assert segment.data[:] == bytes(8192)
    segment.words[3] = 0x0102030405060708
    assert int.from_bytes(segment.data[24:32], sys.byteorder) == 0x0102030405060708
    segment.data[0:8] = b"\xff" * 8
    assert segment.words[0] == (1 << 64) - 1
    segment.close()


def test_pointer_is_the_address_of_a_byte() -> None:
    import ctypes

    segment = Segment.create(4096)
    segment.data[100:103] = b"abc"
    assert ctypes.string_at(segment.pointer(100), 3) == b"abc"
    segment.close()


def test_segment_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPARTIR_SHM_DIR", str(tmp_path))
    assert shm_dir() == str(tmp_path)
    segment = Segment.create(4096)
    assert os.readlink(f"/proc/self/fd/{segment.fd}").startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    segment.close()


def test_descriptor_is_not_inherited_by_other_programs() -> None:
    segment = Segment.create(4096)
    assert not os.get_inheritable(segment.fd)
    segment.close()


def test_folder_is_dev_shm_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REPARTIR_SHM_DIR", raising=False)
    assert shm_dir() == "/dev/shm"
    monkeypatch.setenv("REPARTIR_SHM_DIR", "")
    assert shm_dir() == "/dev/shm"


def test_folder_is_the_temporary_one_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.delenv("REPARTIR_SHM_DIR", raising=False)
    monkeypatch.setattr(segment_module.sys, "platform", "darwin")
    assert shm_dir() == tempfile.gettempdir()


def test_forked_process_shares_the_memory() -> None:
    segment = Segment.create(4096)

    def child() -> None:
        segment.words[7] = segment.words[6] + 1

    segment.words[6] = 41
    Forked(child).join()
    assert segment.words[7] == 42
    segment.close()


def test_fresh_interpreter_attaches_to_the_descriptor() -> None:
    segment = Segment.create(4096)
    segment.words[6] = 41
    source = f"""
from repartir.shm.segment import Segment
segment = Segment.attach({segment.fd})
assert segment.size == 4096
segment.words[7] = segment.words[6] + 1
"""
    subprocess.run(
        [sys.executable, "-c", source],
        pass_fds=[segment.fd],
        env={**os.environ, "PYTHONPATH": str(package_root())},
        timeout=30,
        check=True,
    )
    assert segment.words[7] == 42
    segment.close()


def test_only_what_is_asked_for_is_backed_by_memory() -> None:
    segment = Segment.create(1 << 30, reserved=8192)
    assert os.fstat(segment.fd).st_blocks * 512 == 8192
    reserve(segment.fd, 8192, 1 << 16)
    assert os.fstat(segment.fd).st_blocks * 512 == 8192 + (1 << 16)
    segment.close()


def test_mapping_lives_as_long_as_its_views() -> None:
    segment = Segment.create(4096)
    words, mapping = segment.words, weakref.ref(segment.data)
    segment.close()
    del segment
    words[5] = 55
    part = words[5:6]
    del words
    assert part[0] == 55
    assert mapping() is not None
    del part
    gc.collect()
    assert mapping() is None


def test_close_closes_the_descriptor_once() -> None:
    segment = Segment.create(4096)
    fd = segment.fd
    segment.close()
    with pytest.raises(OSError):
        os.fstat(fd)
    again = os.open(os.devnull, os.O_RDONLY)  # may get the number of the closed one
    segment.close()
    os.fstat(again)
    os.close(again)
    assert segment.fd == -1


def limited(size: int, act: Callable[[], object]) -> Callable[[], None]:
    """A child's work: `act` must find no room in files larger than `size` bytes."""

    def child() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        with pytest.raises(SharedMemoryFull, match="REPARTIR_SHM_DIR") as caught:
            act()
        assert isinstance(caught.value, MemoryError)
        assert isinstance(caught.value.__cause__, OSError)

    return child


def test_no_room_is_an_error_with_a_remedy() -> None:
    segment = Segment.create(1 << 15)
    Forked(limited(1 << 16, lambda: reserve(segment.fd, 1 << 15, 1 << 17))).join()
    segment.close()


@pytest.mark.parametrize("limit", [1 << 16, (1 << 16) + 100, (1 << 17) + 4096 - 8])
def test_no_room_is_noticed_without_posix_fallocate(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """The last write may be the one that is cut short."""
    monkeypatch.delattr(os, "posix_fallocate")
    segment = Segment.create(1 << 20, reserved=4096)
    Forked(limited(limit, lambda: reserve(segment.fd, 4096, 1 << 17))).join()
    segment.close()


def test_room_without_posix_fallocate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    segment = Segment.create(1 << 20, reserved=4096)
    segment.data[0:3] = b"abc"
    reserve(segment.fd, 4096, 200_000)
    assert os.fstat(segment.fd).st_blocks * 512 >= 204_096
    assert os.fstat(segment.fd).st_size == 1 << 20
    assert segment.data[0:4] == b"abc\0"
    segment.close()


def test_interrupted_reservation_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def interrupted(*args: int) -> None:
        calls.append(args)
        if len(calls) < 3:
            raise InterruptedError

    segment = Segment.create(4096)
    monkeypatch.setattr(os, "posix_fallocate", interrupted)
    reserve(segment.fd, 0, 4096)
    assert calls == [(segment.fd, 0, 4096)] * 3
    segment.close()


def test_small_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "repartir-test", str(tmp_path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root can mount a file system")
    try:
        monkeypatch.setenv("REPARTIR_SHM_DIR", str(tmp_path))
        with pytest.raises(SharedMemoryFull, match=r"no room for 1,048,576 bytes .* --shm-size"):
            Segment.create(1 << 20)
        segment = Segment.create(1 << 20, reserved=4096)
        with pytest.raises(SharedMemoryFull):
            reserve(segment.fd, 0, 1 << 20)
        segment.close()
        Segment.create(128 << 10).close()
        gc.collect()
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_folder_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPARTIR_SHM_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(SharedMemoryFull, match="nowhere") as caught:
        Segment.create(4096)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_failed_creation_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    before = os.listdir("/proc/self/fd")
    for name in ("ftruncate", "posix_fallocate"):
        with monkeypatch.context() as patch:

            def fails(*_: int) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(os, name, fails)
            with pytest.raises(OSError if name == "ftruncate" else SharedMemoryFull):
                Segment.create(4096)
    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Segment.create(4096)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL])
def test_file_system_without_o_tmpfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    really: Any = os.open

    def refuses(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(number, os.strerror(number))
        fd: int = really(path, flags, *rest)
        return fd

    monkeypatch.setattr(os, "open", refuses)
    fd = open_unlinked(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert os.write(fd, b"abc") == 3
    assert os.fstat(fd).st_mode & 0o777 == 0o600
    os.close(fd)


def test_system_without_o_tmpfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_TMPFILE")
    monkeypatch.setenv("REPARTIR_SHM_DIR", str(tmp_path))
    segment = Segment.create(4096)
    segment.words[0] = 1
    assert list(tmp_path.iterdir()) == []
    segment.close()


def test_other_errors_of_o_tmpfile_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuses)
    with pytest.raises(PermissionError):
        open_unlinked(str(tmp_path))
    with pytest.raises(SharedMemoryFull, match="Permission denied"):
        Segment.create(4096)
