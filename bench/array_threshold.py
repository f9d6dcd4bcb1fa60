"""From which size on an array travels faster beside the pickle than in it: what `out_of_band` should be.

Two executors, one that never and one that always sends an array beside the pickle, take turns at each size with tasks
that give their argument back: one by one, where the time until a process wakes counts, and many at once, where the
processors' time does.  The threshold has to serve both.  `--plot FILE` draws the curves.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Mapping
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
GOAL = 1.2
MODES = {"one by one": 1, "32 at once": 32}


def seconds_per_task(executor: Any, array: Array, times: int, at_once: int) -> float:
    """The median of `times` from the submits of so many tasks to their last result, divided by their number."""
    times_s = []
    for _ in range(times):
        began = time.perf_counter()
        futures = [executor.submit(identity, array) for _ in range(at_once)]
        for future in futures:
            future.result()
        times_s.append((time.perf_counter() - began) / at_once)
        del futures, future
    return statistics.median(times_s)


def crossover(ratios: Mapping[int, float]) -> int | None:
    """The smallest size from which on no ratio, beside ÷ in the pickle, is above 1; None if the largest one's is."""
    best = None
    for size in sorted(ratios, reverse=True):
        if ratios[size] > 1:
            break
        best = size
    return best


def loss(times: Mapping[int, Mapping[str, Series]], threshold: int) -> Spread | None:
    """Time with this threshold over time with the other choice, at the size where it is worst."""
    found = []
    for size, series in times.items():
        chosen, other = (BESIDE, IN_BAND) if size >= threshold else (IN_BAND, BESIDE)
        if ratios := pair_ratios(series[chosen].values, series[other].values):
            found.append(spread(ratios))
    return max(found, key=lambda each: each.median, default=None)


def size_name(size: float) -> str:
    """KiB or MiB."""
    return f"{size / MIB:g} MiB" if size >= MIB else f"{size / KIB:g} KiB"


def measure(settings: Settings, plot: Path | None = None) -> Report:
    """Microseconds of a task for each size, both ways, in pairs; the crossover of each mode."""
    from repartir import Executor
    from repartir.codec import OUT_OF_BAND_BYTES

    rows: list[Row] = []
    goals: list[Goal] = []
    curves: dict[str, dict[int, Spread]] = {}
    found: list[str] = []
    with (
        Executor(settings.workers, "fork", out_of_band=NEVER) as in_band,
        Executor(settings.workers, "fork", out_of_band=1) as beside,
    ):
        for mode, at_once in MODES.items():
            series = _measure_mode(in_band, beside, at_once, settings)
            ratios = curves[mode] = {}
            for size, both in series.items():
                ratio = ratio_to(both[BESIDE].values, both[IN_BAND].values)
                rows += _rows(f"{mode}, {size_name(size)}", both, ratio)
                if ratio is not None:
                    ratios[size] = ratio
            best = crossover({size: ratio.median for size, ratio in ratios.items()})
            found.append(f"{mode} from {'no size' if best is None else size_name(best)} on")
            text = f"time with the default threshold, against the other choice, at the worst size, {mode}"
            goals.append(Goal(text, loss(series, OUT_OF_BAND_BYTES), GOAL, at_least=False))
    if plot is not None:
        draw(plot, curves, OUT_OF_BAND_BYTES)
    return Report(
        "array_threshold",
        f"an array there and back; faster beside the pickle {', '.join(found)}; "
        f"default {size_name(OUT_OF_BAND_BYTES)}",
        rows,
        goals,
    )


def _measure_mode(
    in_band: Any, beside: Any, at_once: int, settings: Settings
) -> dict[int, dict[str, Series]]:
    times = settings.pick(200, 50) if at_once == 1 else settings.pick(5, 3)
    rounds = settings.pick(15, 5)
    series = {}
    for size in SIZES:
        array = make_array(size)
        measures = {
            name: partial(_microseconds, executor, array, times, at_once)
            for name, executor in ((IN_BAND, in_band), (BESIDE, beside))
        }
        for measure_once in measures.values():
            measure_once()
        series[size] = alternate(measures, dict.fromkeys(measures, rounds))
    return series


def _microseconds(executor: Any, array: Array, times: int, at_once: int) -> float:
    return 1e6 * seconds_per_task(executor, array, times, at_once)


def _rows(case: str, both: Mapping[str, Series], ratio: Spread | None) -> Iterator[Row]:
    for name, own in both.items():
        value = spread(own.values) if own.values else None
        paired, note = (ratio, "÷: beside it over this") if name == IN_BAND else (None, "")
        yield Row(case, name, value, "µs/task", paired, own.failure or note)


def draw(file: Path, curves: Mapping[str, Mapping[int, Spread]], threshold: int) -> None:
    """A curve of the ratios for each mode, with the least and the most of the rounds, and the default threshold."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "array_threshold"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for mode, ratios in curves.items():
        sizes = list(ratios)
        least, most = [each.low for each in ratios.values()], [each.high for each in ratios.values()]
        axes.fill_between(sizes, least, most, alpha=0.2)
        axes.plot(sizes, [each.median for each in ratios.values()], marker="o", label=mode)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.axvline(threshold, color="black", linestyle=":", label=f"default: {size_name(threshold)}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(SIZES, [size_name(size) for size in SIZES], rotation=45)
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
