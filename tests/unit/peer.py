"""A worker reduced to what serialisation needs: it runs calls that arrive over a pipe, one at a time.

For scripts that a test runs as the main program of a fresh interpreter (`run_main`), so that `__main__` means
what it means to users.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from repartir.codec import Encoded, InheritedArrays, decode, encode_call, parts_of, raw
from repartir.functions import FunctionCache, FunctionTable
from repartir.outcome import Error, Value, capture, decode_outcome, encode_outcome

ROOT = Path(__file__).parents[2]


def run_main(script: str) -> str:
    """Run `script` as `__main__` in a fresh interpreter; its output. Fails with its traceback."""
    done = subprocess.run(
        [sys.executable, "-c", "from tests.unit.peer import Peer\n" + script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Peer:
    """A worker forked from this process, or a fresh interpreter, with pipes to it."""

    def __init__(self, inherited: InheritedArrays | None = None, *, fork: bool = True) -> None:
        self.inherited = inherited
        self.table = FunctionTable(inherited)
        self.sent_bytes = 0
        read_call, self._calls = os.pipe()
        self._outcomes, write_outcome = os.pipe()
        if fork:
            if os.fork() == 0:
                os.close(self._calls)
                try:
                    serve(read_call, write_outcome)
                finally:
                    os._exit(0)
        else:
            code = f"from tests.unit.peer import serve; serve({read_call}, {write_outcome})"
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], pass_fds=(read_call, write_outcome), cwd=ROOT
            )
        if inherited is not None:
            inherited.release()
        os.close(read_call)
        os.close(write_outcome)

    def outcome(self, fn: Any, *args: Any, **kwargs: Any) -> Value | Error:
        ref = self.table.encode(fn)
        call = encode_call(args, kwargs, self.inherited)
        self.sent_bytes = 0
        for part in (ref.blob, call):
            self.sent_bytes += part.size_bytes if isinstance(part, Encoded) else len(part)
        frames = [ref.key.to_bytes(8, "little")]
        _write(self._calls, frames + _frames(ref.blob))
        _write(self._calls, _frames(call))
        meta, *buffers = _read(self._outcomes)
        return decode_outcome(meta, buffers)

    def run(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        outcome = self.outcome(fn, *args, **kwargs)
        if isinstance(outcome, Error):
            raise outcome.exception
        return outcome.value


def serve(calls: int, outcomes: int) -> None:
    """Run calls until the pipe closes."""
    cache = FunctionCache()
    while frames := _read(calls):
        key, blob, *buffers = frames
        number = int.from_bytes(key, "little")
        meta, *call_buffers = _read(calls)
        fn = cache.get(number) or cache.put(number, blob, buffers)
        args, kwargs = decode(meta, call_buffers)
        _write(outcomes, _frames(encode_outcome(capture(fn, args, kwargs))))
        del fn, args, kwargs


def _frames(part: bytes | Encoded) -> list[Any]:
    return [raw(each) for each in parts_of(part)]


def _write(fd: int, frames: list[Any]) -> None:
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(struct.pack("<q", len(frames)))
        for frame in frames:
            file.write(struct.pack("<q", len(frame)))
            file.write(frame)


def _read(fd: int) -> list[bytearray]:
    count = _read_exactly(fd, 8)
    if not count:
        return []
    sizes = range(struct.unpack("<q", count)[0])
    return [_read_exactly(fd, struct.unpack("<q", _read_exactly(fd, 8))[0]) for _ in sizes]


def _read_exactly(fd: int, size: int) -> bytearray:
    data = bytearray()
    while len(data) < size:
        chunk = os.read(fd, size - len(data))
        if not chunk:
            return bytearray()
        data += chunk
    return data
