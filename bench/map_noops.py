"""`map` with defaults over no-ops, against the stdlib's defaults and against its best chunk size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from .common import Settings, against_stdlib, measure_all, ratio_to, rows_of, run_script, spread_of
from .contenders import CONTENDERS, OURS, STDLIB, Contender, Pool
from .report import Goal, Report, Row
from .stats import alternate
from .tasks import noop_item

CHUNKS = (1_000, 5_000, 20_000, 50_000)
REPEATS = 3


def _items_per_second(pool: Pool, items: Sequence[int], chunksize: int | None, repeats: int) -> float:
    rates = []
    for _ in range(repeats):
        began = time.perf_counter()
        pool.map(noop_item, items, chunksize)
        rates.append(len(items) / (time.perf_counter() - began))
    return statistics.median(rates)


def measure(settings: Settings) -> Report:
    """Items per second with defaults (all), then our default against the stdlib's best over `CHUNKS`."""
    items = range(settings.pick(full=100_000, quick=20_000))
    many = range(settings.pick(full=1_000_000, quick=100_000))
    best_chunks: list[int] = []

    def with_defaults(contender: Contender) -> float:
        with contender.open(settings.workers) as pool:
            pool.map(noop_item, range(100), None)
            return _items_per_second(pool, items, None, repeats=1)

    def ours_repeated() -> float:
        with CONTENDERS[OURS].open(settings.workers) as pool:
            pool.map(noop_item, range(100), None)
            return _items_per_second(pool, many, None, REPEATS)

    def best_tuned() -> float:
        with CONTENDERS[STDLIB].open(settings.workers) as pool:
            pool.map(noop_item, range(100), None)
            rates = {chunk: _items_per_second(pool, many, chunk, 1) for chunk in CHUNKS}
        best_chunks.append(max(rates, key=rates.__getitem__))
        return max(rates.values())

    defaults = measure_all(with_defaults, rounds=3, peer_rounds=1)
    rounds = settings.pick(7, 3)
    measures = {OURS: ours_repeated} if CONTENDERS[OURS].installed else {}
    tuned = alternate({**measures, STDLIB: best_tuned}, {OURS: rounds, STDLIB: rounds})
    against_best = ratio_to(tuned[OURS].values, tuned[STDLIB].values) if OURS in tuned else None
    case = f"{len(many):,} items, best of chunks {CHUNKS[0]:,}…{CHUNKS[-1]:,}"
    note = f"best chunks: {sorted(set(best_chunks))}"
    rows = [
        *rows_of(f"defaults, {len(items):,} items", defaults, "items/s"),
        Row(case, f"{OURS} (default)", spread_of(tuned, OURS), "items/s"),
        Row(case, STDLIB, spread_of(tuned, STDLIB), "items/s", against_best, note),
    ]
    return Report(
        "map_noops",
        "map over no-ops",
        rows,
        [
            Goal("items/s with defaults, against its default", against_stdlib(defaults), 40, at_least=True),
            Goal("items/s with defaults, against its best chunk size", against_best, 1.0, at_least=True),
        ],
    )


if __name__ == "__main__":
    raise SystemExit(run_script("map_noops", measure, description=__doc__))
