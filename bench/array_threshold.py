"""From which size on the elements of an array should travel beside the pickle: the way there and back, both ways.

`--plot FILE` draws the curve (matplotlib); `docs/array_threshold.svg` is one.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Sequence
from functools import partial

import numpy as np

from .common import Settings, run_script
from .report import Report, Row
from .stats import Spread, pair_ratios, spread
from .tasks import give_back

SIZES = tuple(1 << power for power in range(10, 21))
IN_BAND, BESIDE = "in the pickle", "beside the pickle"


def trip_us(executor: object, size: int, trips: int) -> float:
    """Microseconds there and back, median, of an array of `size` bytes."""
    array = np.zeros(size, np.uint8)
    clock, times = time.perf_counter, []
    for _ in range(trips):
        began = clock()
        executor.submit(give_back, array).result()  # type: ignore[attr-defined]
        times.append((clock() - began) * 1e6)
    return statistics.median(times)


def measure(settings: Settings, plot: str | None = None) -> Report:
    """Microseconds for each size and way, in pairs; the crossover is where the ratio falls below 1."""
    repartir = importlib.import_module("repartir")
    rounds, trips = settings.pick(9, 3), settings.pick(300, 100)
    found: dict[tuple[str, int], list[float]] = {
        (way, size): [] for way in (IN_BAND, BESIDE) for size in SIZES
    }
    with (
        repartir.Executor(1, "fork", out_of_band=1 << 40) as in_band,
        repartir.Executor(1, "fork", out_of_band=1) as beside,
    ):
        for size in SIZES:
            for executor in (in_band, beside):
                trip_us(executor, size, 20)
            for _ in range(rounds):
                for way, executor in ((IN_BAND, in_band), (BESIDE, beside)):
                    found[way, size].append(trip_us(executor, size, trips))
    rows = []
    for size in SIZES:
        ratio = spread(pair_ratios(found[BESIDE, size], found[IN_BAND, size]))
        case = f"{size >> 10:,} KiB"
        rows += [
            Row(case, IN_BAND, spread(found[IN_BAND, size]), "µs"),
            Row(case, BESIDE, spread(found[BESIDE, size]), "µs", ratio, "ratio: to in the pickle"),
        ]
    if plot is not None:
        draw(plot, {key: spread(values) for key, values in found.items()})
    return Report("array_threshold", "an array there and back, in and beside the pickle", rows, [])


def draw(path: str, found: dict[tuple[str, int], Spread]) -> None:
    """Write the curve as an image."""
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(6.5, 3.8))
    for way in (IN_BAND, BESIDE):
        medians = [found[way, size].median for size in SIZES]
        axes.plot([size / 1024 for size in SIZES], medians, marker="o", label=way)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("bytes of the array / KiB")
    axes.set_ylabel("there and back / µs")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """The command: `--plot FILE` besides the options of all benchmarks."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--plot")
    options, rest = parser.parse_known_args(argv)
    return run_script("array_threshold", partial(measure, plot=options.plot), rest, description=__doc__)


if __name__ == "__main__":
    raise SystemExit(main())
