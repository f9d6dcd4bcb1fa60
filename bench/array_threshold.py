"""From which size on an array travels faster beside the pickle than in it: what `out_of_band` should be.

Two executors, one that never and one that always sends an array beside the pickle, take turns at each size: from
submit to the result of a task that gives its argument back.  `--plot FILE` draws the curve.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .arrays import MIB, Array, identity, make_array
from .common import Settings, ratio_to, run_script
from .report import Goal, Report, Row
from .stats import Series, Spread, alternate, pair_ratios, spread

KIB = 1024
SIZES = tuple(KIB << doubling for doubling in range(11))
IN_BAND, BESIDE = "in the pickle", "beside it"
NEVER = 1 << 40
GOAL = 1.1


def seconds_per_trip(executor: Any, array: Array, trips: int) -> float:
    """The median of `trips` from submit to result."""
    times_s = []
    for _ in range(trips):
        began = time.perf_counter()
        result = executor.submit(identity, array).result()
        times_s.append(time.perf_counter() - began)
        del result
    return statistics.median(times_s)


def crossover(ratios: Mapping[int, float]) -> int | None:
    """The smallest size from which on no ratio, beside ÷ in the pickle, is above 1; None if the largest one's is."""
    best = None
    for size in sorted(ratios, reverse=True):
        if ratios[size] > 1:
            break
        best = size
    return best


def loss(trips: Mapping[int, Mapping[str, Series]], threshold: int) -> Spread | None:
    """Time with this threshold over time with the other choice, at the size where it is worst."""
    found = []
    for size, series in trips.items():
        chosen, other = (BESIDE, IN_BAND) if size >= threshold else (IN_BAND, BESIDE)
        if ratios := pair_ratios(series[chosen].values, series[other].values):
            found.append(spread(ratios))
    return max(found, key=lambda each: each.median, default=None)


def size_name(size: float) -> str:
    """KiB or MiB."""
    return f"{size / MIB:g} MiB" if size >= MIB else f"{size / KIB:g} KiB"


def measure(settings: Settings, plot: Path | None = None) -> Report:
    """Microseconds of a round trip for each size, both ways, in pairs."""
    from repartir import Executor
    from repartir.codec import OUT_OF_BAND_BYTES

    trips, rounds = settings.pick(200, 50), settings.pick(15, 5)
    series: dict[int, dict[str, Series]] = {}
    with (
        Executor(settings.workers, "fork", out_of_band=NEVER) as in_band,
        Executor(settings.workers, "fork", out_of_band=1) as beside,
    ):
        for size in SIZES:
            array = make_array(size)
            for executor in (in_band, beside):
                seconds_per_trip(executor, array, trips)
            measures = {
                name: partial(
                    lambda executor, array: 1e6 * seconds_per_trip(executor, array, trips), each, array
                )
                for name, each in ((IN_BAND, in_band), (BESIDE, beside))
            }
            series[size] = alternate(measures, dict.fromkeys(measures, rounds))
    rows, ratios = [], {}
    for size, both in series.items():
        ratio = ratio_to(both[BESIDE].values, both[IN_BAND].values)
        for name, own in both.items():
            value = spread(own.values) if own.values else None
            rows.append(
                Row(size_name(size), name, value, "µs", ratio if name == IN_BAND else None, own.failure or "")
            )
        if ratio is not None:
            ratios[size] = ratio
    found = crossover({size: ratio.median for size, ratio in ratios.items()})
    if plot is not None:
        draw(plot, ratios, OUT_OF_BAND_BYTES)
    return Report(
        "array_threshold",
        f"an array there and back in the pickle and beside it; as fast or faster beside it from "
        f"{'no size' if found is None else size_name(found)} on, default {size_name(OUT_OF_BAND_BYTES)}",
        rows,
        [
            Goal(
                "time with the default threshold, against the other choice, at the worst size",
                loss(series, OUT_OF_BAND_BYTES),
                GOAL,
                at_least=False,
            )
        ],
    )


def draw(file: Path, ratios: Mapping[int, Spread], threshold: int) -> None:
    """The curve of the ratios, with the least and the most of the rounds, and the default threshold."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "array_threshold"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    sizes: Sequence[int] = list(ratios)
    axes.fill_between(
        sizes, [ratios[size].low for size in sizes], [ratios[size].high for size in sizes], alpha=0.2
    )
    axes.plot(sizes, [ratios[size].median for size in sizes], marker="o")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.axvline(threshold, color="black", linestyle=":", label=f"default: {size_name(threshold)}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(sizes, [size_name(size) for size in sizes], rotation=45)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("size of the array")
    axes.set_ylabel("time beside the pickle ÷ in it")
    axes.legend()
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    pyplot.close(figure)


def main() -> int:
    """Take `--plot`, leave the rest to the common frame."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--plot", type=Path)
    own, rest = parser.parse_known_args()
    return run_script("array_threshold", partial(measure, plot=own.plot), rest, __doc__)


if __name__ == "__main__":
    raise SystemExit(main())
