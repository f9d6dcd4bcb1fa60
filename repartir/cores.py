"""What a worker may use of the cores: how many threads its numerical libraries start, and a core of its own.

A library that is loaded later reads its number from the environment.  Those that a forked nursery has already are found by
threadpoolctl in the client, where it is loaded once, and told in the nursery, before it forks the members, which inherit it.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

AUTO = "auto"
VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_FOR_ALL = VARIABLES[0]
"""Libraries heed it where their own variable is not set."""
_FILE = re.compile(r"/lib(scipy_)?(openblas|blas|flexiblas|blis|mkl_rt|gomp|iomp|omp)[^/]*$", re.MULTILINE)
"""The path of a library that threadpoolctl knows."""
Libraries = tuple[Any, ...]
"""Controllers of threadpoolctl."""
_MOST_DIGITS = 6
_NODES = "/sys/devices/system/node"


class CoreShare(NamedTuple):
    """One worker's share of the cores.

    Attributes:
        threads: threads of each numerical library in a worker; None: libraries are left alone.
        at_most: what the environment, and a library that is loaded, say already counts where it is less.
        pins: the cores to which workers are bound, in the order of their rows, over and over; none: workers run anywhere.
    """

    threads: int | None
    at_most: bool
    pins: tuple[int, ...] = ()

    def variables(self, environment: Mapping[str, str]) -> dict[str, str]:
        """What a worker's environment is to say, where this process's says ``environment``."""
        if self.threads is None:
            return {}
        numbers = dict.fromkeys(VARIABLES, self.threads)
        if self.at_most:
            for name in VARIABLES:
                said = _first_number(environment.get(name)) or _first_number(environment.get(_FOR_ALL))
                numbers[name] = min(self.threads, said or self.threads)
        return {name: str(number) for name, number in numbers.items()}

    def limiter(self) -> Callable[[], None] | None:
        """What limits a fork of this process, and those that it forks in turn; None if nothing is to be limited.

        What can be found out here is: in a fresh fork everything takes several times as long.
        """
        if self.threads is None:
            return None
        return functools.partial(self._limit, self.variables(os.environ), _loaded_libraries(), self.threads)

    def _limit(self, variables: Mapping[str, str], libraries: Libraries, threads: int) -> None:
        os.environ.update(variables)
        for library in libraries:
            present = library.num_threads
            if present is None or present > threads or (present < threads and not self.at_most):
                library.set_num_threads(threads)
                # Of newer threadpoolctl: who sets a limit keeps others from it, here all other threads of workers.
                if hasattr(library, "clear_controlling_thread"):
                    library.clear_controlling_thread()

    def pin(self, row: int) -> None:
        """Bind this process, the member of ``row``, to its core."""
        if self.pins:
            os.sched_setaffinity(0, {self.pins[row % len(self.pins)]})


UNLIMITED = CoreShare(None, at_most=False)


def share_of_cores(threads_per_worker: Any, pin: Any, workers: int, cores: int) -> CoreShare:
    """What each of so many workers gets of so many usable cores; ``TypeError`` and ``ValueError`` for bad arguments."""
    if not isinstance(pin, bool):
        raise TypeError(f"pin must be True or False, not {type(pin).__name__}")
    if pin and not hasattr(os, "sched_setaffinity"):
        raise ValueError("pin=True needs os.sched_setaffinity, which this system does not have: leave it out")
    pins = cores_by_node() if pin else ()
    if threads_per_worker is None:
        return CoreShare(None, at_most=False, pins=pins)
    if threads_per_worker == AUTO:
        threads = 1 if pin else max(1, cores // workers)
        return CoreShare(threads, at_most=True, pins=pins)
    if isinstance(threads_per_worker, str):
        raise ValueError(f'threads_per_worker must be a number, "auto" or None, not {threads_per_worker!r}')
    if isinstance(threads_per_worker, bool) or not isinstance(threads_per_worker, int):
        raise TypeError(
            f'threads_per_worker must be an integer, "auto" or None, not {type(threads_per_worker).__name__}'
        )
    if threads_per_worker < 1:
        raise ValueError(f"threads_per_worker must be at least 1, not {threads_per_worker}")
    return CoreShare(threads_per_worker, at_most=False, pins=pins)


def cores_by_node(nodes: str = _NODES) -> tuple[int, ...]:
    """The usable cores, those of one NUMA node after those of another, by number within a node.

    Neighbouring workers then share a node's memory; the kernel numbers a core's second hardware threads last.
    """
    usable = os.sched_getaffinity(0)
    node_of = dict(_nodes(nodes))
    return tuple(sorted(usable, key=lambda core: (node_of.get(core, 0), core)))


def _nodes(folder: str) -> Iterator[tuple[int, int]]:
    """(core, its node) as the kernel tells it; nothing where it does not."""
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        if matched := re.fullmatch(r"node(\d+)", name):
            try:
                with open(f"{folder}/{name}/cpulist") as file:
                    text = file.read()
            except OSError:
                continue
            for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
                for core in range(int(first), int(last or first) + 1):
                    yield core, int(matched[1])


def _first_number(text: str | None) -> int | None:
    """The number that a variable gives for the outermost level (OpenMP takes a list); None where it gives none."""
    first = "" if text is None else text.partition(",")[0].strip()
    return int(first) or None if first.isdecimal() and len(first) <= _MOST_DIGITS else None


def _loaded_libraries() -> Libraries:
    """Looking at them takes milliseconds, so it is done anew only when others are mapped than before."""
    try:
        with open("/proc/self/maps") as file:
            mapped = frozenset(found[0] for found in _FILE.finditer(file.read()))
    except OSError:  # the system does not tell
        return _look_at_libraries()
    return _libraries(mapped) if mapped else ()


@functools.lru_cache(maxsize=1)
def _libraries(_mapped: frozenset[str]) -> Libraries:
    return _look_at_libraries()


def _look_at_libraries() -> Libraries:
    import threadpoolctl

    return tuple(threadpoolctl.ThreadpoolController().lib_controllers)
