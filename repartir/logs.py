"""Log records and warnings of workers, on their way to the client's ``logging`` and ``warnings``.

In a worker one handler takes the place of those that it inherited: what they write, the client writes when the record
arrives.  A record travels as its dictionary, with the message formatted, so nothing of the task's is unpickled there.
"""

from __future__ import annotations

import itertools
import logging
import pickle
import struct
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any

from repartir.errors import InternalError

SEQUENCE = struct.Struct("=Q")
"""Before each record: its number, since the client may drain one twice."""
_RECORD, _WARNING = range(2)
_PLAIN = (str, int, float, bool, type(None))
_EXACT: dict[type, Callable[[Any], object]]
_EXACT = {str: str.__str__, int: int.__int__, float: float.__float__}
_formatter = logging.Formatter()
_SHORT = 500
_ESSENTIAL = {
    *("name", "levelname", "levelno", "created", "msecs", "relativeCreated", "args"),
    *(
        "process",
        "processName",
        "thread",
        "threadName",
        "pathname",
        "filename",
        "module",
        "lineno",
        "funcName",
    ),
    "category",
}


def levels_for(start_method: str) -> dict[str, int]:
    """The levels of this process's loggers by their names, where workers do not inherit them."""
    if start_method == "fork":
        return {}
    return {"": logging.root.level, **{logger.name: logger.level for logger in _loggers() if logger.level}}


def _loggers() -> list[logging.Logger]:
    """All but the root."""
    return [
        each for each in list(logging.root.manager.loggerDict.values()) if isinstance(each, logging.Logger)
    ]


def set_levels(levels: dict[str, int]) -> None:
    for name, level in levels.items():
        logging.getLogger(name or None).setLevel(level)


class Forwarder(logging.Handler):
    """Sends what a worker logs, in order, from whatever thread.

    ``send`` may raise ``InternalError`` when this thread is in the middle of another send: a finalizer logs, or a signal
    handler.  The record then goes with the next, or when ``flush`` is called after the task.
    """

    def __init__(self, worker: str, largest_bytes: int, send: Callable[[bytes], None]) -> None:
        super().__init__()
        self.pending: deque[_Waiting] = deque()
        self._worker = worker
        self._largest = largest_bytes
        self._send = send
        self._numbers = itertools.count(1)
        self._sends = threading.Lock()
        self._replaced: list[logging.Handler] = []

    def install(self) -> None:
        """Take the place of all handlers, and of what shows warnings."""
        # Kept alive: at its end a handler may write what the client has buffered.
        self._replaced = [handler for logger in (logging.root, *_loggers()) for handler in logger.handlers]
        for logger in _loggers():
            if logger.handlers:
                logger.handlers = [] if logger.propagate else [self]
        logging.root.handlers = [self]
        warnings.showwarning = self._show_warning  # type: ignore[assignment]

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._put(_RECORD, self._portable(record))
        except Exception:  # noqa: BLE001 - as every handler does
            self.handleError(record)

    def flush(self) -> None:
        """Send what waits, unless that is being done."""
        while self.pending and self._sends.acquire(blocking=False):
            try:
                first = self.pending[0]
                # Numbered here, by one thread at a time: in the order in which they are sent, and again the same.
                first.number = first.number or next(self._numbers)
                self._send(SEQUENCE.pack(first.number) + first.data)
                self.pending.popleft()
            except InternalError:
                return
            finally:
                self._sends.release()

    def _portable(self, record: logging.LogRecord) -> dict[str, Any]:
        fields = dict(record.__dict__)
        fields["msg"] = record.getMessage()
        fields["args"] = None
        fields["processName"] = self._worker
        if record.exc_info:
            fields["exc_text"] = record.exc_text or _formatter.formatException(record.exc_info)
            fields["exc_info"] = None
        return {name: value if type(value) in _PLAIN else _plain(value) for name, value in fields.items()}

    def _show_warning(
        self, message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object
    ) -> None:
        self._put(
            _WARNING, {"text": str(message), "category": category, "filename": filename, "lineno": lineno}
        )

    def _put(self, kind: int, fields: dict[str, Any]) -> None:
        try:
            data = pickle.dumps((kind, fields))
        except Exception:  # noqa: BLE001 - a category that cannot be imported
            data = pickle.dumps((kind, {**fields, "category": UserWarning}))
        if len(data) > self._largest - SEQUENCE.size:
            data = pickle.dumps((kind, self._shortened(fields)))
        self.pending.append(_Waiting(data))
        self.flush()

    def _shortened(self, fields: dict[str, Any]) -> dict[str, Any]:
        """What fits, whatever the record had: what the program added is left out, and texts are cut."""
        short = {name: _cut(value, _SHORT) for name, value in fields.items() if name in _ESSENTIAL}
        for name in fields.keys() & {"msg", "text", "exc_text"}:
            short[name] = _cut(fields[name], self._largest // 4, "… (cut: it is too long to be forwarded)")
        return short


class _Waiting:
    """A record that is not sent yet, or perhaps it is: an exception came in between."""

    __slots__ = ("data", "number")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.number = 0


def _plain(value: object) -> object:
    """What takes the place of a value whose class the client may lack: the number or text that it is, or what it shows."""
    for kind, exact in _EXACT.items():
        if isinstance(value, kind):
            return exact(value)
    return repr(value)


def _cut(value: Any, most: int, note: str = "") -> Any:
    """A text of at most so many bytes, with the note behind it if it was longer."""
    if not isinstance(value, str) or len(encoded := value.encode(errors="replace")) <= most:
        return value
    return encoded[:most].decode(errors="ignore") + note


_log = logging.getLogger("repartir")


def tell(level: int, message: str, *args: object, exc_info: bool = False) -> None:
    """Log in a thread of ours, whatever the program's handlers and filters raise: that is printed."""
    try:
        _log.log(level, message, *args, exc_info=exc_info)
    except BaseException:  # noqa: BLE001 - `sys.exit()` there ends no thread of ours
        traceback.print_exc()


_registry: dict[Any, Any] = {}


def deliver(data: bytes) -> None:
    """In the client: hand a worker's record to the logger of its name, a warning to the filters of this process."""
    try:
        kind, fields = pickle.loads(memoryview(data)[SEQUENCE.size :])
        if kind == _RECORD:
            record = logging.makeLogRecord(fields)
            logger = logging.getLogger(record.name)
            if logger.isEnabledFor(record.levelno):
                logger.handle(record)
        else:
            warnings.warn_explicit(
                fields["text"], fields["category"], fields["filename"], fields["lineno"], registry=_registry
            )
    except BaseException:  # noqa: BLE001 - of a handler, a filter, or a warning that is an error here
        traceback.print_exc()
