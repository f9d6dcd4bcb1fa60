"""Files that are there in whole or not at all, whatever ends the program or the power."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable


def write(path: str, pieces: Iterable[bytes]) -> None:
    """Put ``pieces`` in place of what ``path`` has; on the disk when this returns.

    ``OSError`` if they cannot be written: ``path`` is then as it was.  A kill may leave ``PATH.new``, which the next call
    replaces.
    """
    new = f"{path}.new"
    try:
        with open(new, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        remove(new)
        raise
    sync_folder(os.path.dirname(path) or ".")


def remove(path: str) -> None:
    """Remove a file that may not be there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def sync_folder(folder: str) -> None:
    """Make names that were made or changed in ``folder`` survive power loss."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
