"""The outcome of the demo as rich tables for people and as JSON for programs."""

import json
from dataclasses import asdict, dataclass

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from repartir.demo.forecast import BOOTSTRAP_REPLICATES, Score
from repartir.demo.option import Price
from repartir.demo.study import Sweep

SHOWN = 5


@dataclass(frozen=True, slots=True)
class Timing:
    """One run of all calls: wall time with start and shutdown, and the SHA-256 of all its numbers."""

    seconds: float
    digest: str
    workers: int
    blas_threads: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that the demo found."""

    seed: int
    calls: int
    paths: int
    sweeps: list[Sweep]
    prices: list[Price]
    serial: Timing
    pool: Timing

    @property
    def speedup(self) -> float:
        """Serial wall time over the pool's."""
        return self.serial.seconds / self.pool.seconds

    @property
    def same_numbers(self) -> bool:
        """Whether every result has the same bits both ways."""
        return self.serial.digest == self.pool.digest


def to_json(outcome: Outcome) -> str:
    """One JSON object; errors in the units of the series, windows in steps, times in seconds."""
    return json.dumps(
        {
            "seed": outcome.seed,
            "tasks": outcome.calls,
            "series": [_sweep_record(sweep) for sweep in outcome.sweeps],
            "option": {"paths": outcome.paths, "prices": [asdict(price) for price in outcome.prices]},
            "serial": asdict(outcome.serial),
            "pool": asdict(outcome.pool),
            "speedup": outcome.speedup,
            "same_numbers": outcome.same_numbers,
        },
        indent=2,
    )


def _sweep_record(sweep: Sweep) -> dict[str, object]:
    return {
        "name": sweep.series.name,
        "unit": sweep.series.unit,
        "source": sweep.series.source,
        "observations": len(sweep.series.values),
        "missing": sweep.missing,
        "validation_steps": sweep.validated,
        "test_steps": sweep.tested,
        "persistence": asdict(sweep.persistence),
        "candidates": [asdict(score) for score in sweep.ranked],
    }


def print_tables(console: Console, outcome: Outcome) -> None:
    """The readable report."""
    console.print(_header(outcome))
    for sweep in outcome.sweeps:
        console.print(_sweep_table(sweep))
    console.print(_price_table(outcome))
    console.print(_times(outcome))


def _header(outcome: Outcome) -> RenderableType:
    title = "repartir demo: a forecasting sweep and a Monte Carlo, serially and on the pool"
    sources = [Text(f"  {sweep.series.source}") for sweep in outcome.sweeps]
    return Group(
        Text(title, style="bold"), Text("data (public domain, both from statsmodels):"), *sources, Text()
    )


def _sweep_table(sweep: Sweep) -> RenderableType:
    series, shown = sweep.series, sweep.ranked[:SHOWN]
    title = f"{series.name}: best {len(shown)} of {len(sweep.ranked)} autoregressions, error in {series.unit}"
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    test_years = f"{series.test_from}-{int(series.times[-1])}"
    table.add_column("order", justify="right")
    table.add_column("window", justify="right")
    table.add_column(f"{series.validation_from}-{series.test_from - 1}\n(chooses)", justify="right")
    table.add_column(f"{test_years}\n(judges)", justify="right")
    table.add_column("better than\npersistence", justify="right")
    digits = 2 if sweep.persistence.test_rmse > 1 else 4
    for score in shown:
        gain = f"{score.gain:.1%} ± {score.gain_se:.1%}"
        window = f"{score.window // series.per_year} years"
        table.add_row(str(score.order), window, *_errors(score, digits), gain)
    table.add_row("persistence", "", *_errors(sweep.persistence, digits), "")
    return Group(Text(title, style="bold"), table, _note(_method(sweep)))


def _errors(score: Score, digits: int) -> tuple[str, str]:
    return f"{score.validation_rmse:.{digits}f}", f"{score.test_rmse:.{digits}f} ± {score.test_se:.{digits}f}"


def _method(sweep: Sweep) -> str:
    series = sweep.series
    step = "year" if series.per_year == 1 else "week"
    gaps = ""
    regressors = "an intercept"
    if series.trend_and_harmonics is not None:
        regressors = f"a linear trend and {series.trend_and_harmonics} annual harmonics"
    refit = f"every {series.refit_every} {step}s" if series.refit_every > 1 else f"every {step}"
    if sweep.missing:
        gaps = (
            f" {sweep.missing} of {len(series.values)} {step}s are missing and not filled in: fits leave out"
            f" rows that touch one, {step}s with one in their history are not scored."
        )
    return (
        f"Root mean square error one {step} ahead. Least squares with {regressors}, refitted {refit};"
        f" {sweep.validated} {step}s choose, {sweep.tested} judge. ±: standard error, moving-block bootstrap"
        f" of the errors ({BOOTSTRAP_REPLICATES} draws, blocks of {series.block} {step}s).{gaps}"
    )


def _price_table(outcome: Outcome) -> RenderableType:
    title = f"option: call on the arithmetic average of 5 correlated assets, {outcome.paths:,} paths"
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in (
        "strike",
        "price",
        "price with\ncontrol variate",
        "geometric,\nsame paths",
        "geometric,\nexact",
    ):
        table.add_column(name, justify="right")
    for price in outcome.prices:
        table.add_row(
            f"{price.strike:.0f}",
            f"{price.plain:.4f} ± {price.plain_se:.4f}",
            f"{price.controlled:.5f} ± {price.controlled_se:.5f}",
            f"{price.geometric:.4f} ± {price.geometric_se:.4f}",
            f"{price.geometric_exact:.4f}",
        )
    note = (
        "±: standard error over independent batches. The geometric average has a closed form; it serves as"
        " a check and as the control variate."
    )
    return Group(Text(title, style="bold"), table, _note(note))


def _times(outcome: Outcome) -> RenderableType:
    serial, pool = outcome.serial, outcome.pool
    table = Table.grid(padding=(0, 1))
    tasks = f"{outcome.calls} tasks in this process, {_blas(serial)}"
    workers = f"{pool.workers} workers, {_blas(pool)} each, start included"
    table.add_row("serially:", f"{serial.seconds:.2f} s", tasks)
    table.add_row("on the pool:", f"{pool.seconds:.2f} s", workers)
    table.add_row("speed-up:", f"{outcome.speedup:.2f}×", "")
    same = Text("yes", style="bold green") if outcome.same_numbers else Text("NO", style="bold red")
    table.add_row("same numbers both ways:", same, f"bit by bit, SHA-256 {pool.digest[:12]}…")
    return table


def _blas(timing: Timing) -> str:
    return f"{timing.blas_threads} BLAS thread{'s' if timing.blas_threads > 1 else ''}"


def _note(text: str) -> RenderableType:
    return Text(text + "\n", style="dim")
