"""The two series of the demo: NOAA's yearly sunspot numbers and weekly CO2 at Mauna Loa.

Missing weeks of the CO2 record are NaN and stay NaN: nothing is interpolated. A regression row that touches
one is left out of the fit, and a week whose history has one is not scored (see `forecast`).
"""

import csv
from dataclasses import dataclass
from datetime import date
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Series:
    """An equally spaced series and how the demo treats it.

    `times` (n,) are years as decimal numbers, `values` (n,) are in `unit`, NaN where missing. The held-out
    years from `validation_from` on choose, those from `test_from` to the end judge.
    """

    name: str
    unit: str
    source: str
    times: Floats
    values: Floats
    per_year: int
    trend_and_harmonics: int | None
    """None: an intercept only. Otherwise also a linear trend and this many harmonics of the annual cycle."""
    refit_every: int
    """Steps after which the model is fitted anew while it rolls forward."""
    block: int
    """Length of the bootstrap's blocks in steps: one cycle of the series."""
    validation_from: int
    test_from: int

    def first_of(self, year: int) -> int:
        """Index of the first observation in or after `year`."""
        return int(np.searchsorted(self.times, year))


def sunspots() -> Series:
    """309 yearly means, 1700 to 2008, none missing."""
    rows = _rows("sunspots_yearly.csv")
    return Series(
        name="sunspots",
        unit="sunspot number",
        source="yearly sunspot numbers, NOAA National Geophysical Data Center",
        times=np.array([float(year) for year, _ in rows]),
        values=np.array([float(count) for _, count in rows]),
        per_year=1,
        trend_and_harmonics=None,
        refit_every=1,
        block=11,
        validation_from=1880,
        test_from=1944,
    )


def co2() -> Series:
    """2284 weekly means in ppm, March 1958 to December 2001; 59 weeks are missing (NaN).

    The level grows and has an annual cycle of 52.18 weeks, which is no whole number of steps. Hence a trend
    and harmonics as regressors beside the lags (dynamic harmonic regression) rather than differences over 52
    weeks, with which no order up to 39 beats persistence.
    """
    rows = _rows("co2_weekly.csv")
    return Series(
        name="co2",
        unit="ppm",
        source="weekly CO2 at Mauna Loa, Keeling & Whorf, CDIAC 2004",
        times=np.array([_decimal_year(day) for day, _ in rows]),
        values=np.array([float(ppm) if ppm else np.nan for _, ppm in rows]),
        per_year=52,
        trend_and_harmonics=3,
        refit_every=13,
        block=52,
        validation_from=1982,
        test_from=1992,
    )


def _rows(file_name: str) -> list[list[str]]:
    text = (files("repartir") / "data" / file_name).read_text(encoding="utf-8")
    return list(csv.reader(text.splitlines()))[1:]


def _decimal_year(iso_day: str) -> float:
    day = date.fromisoformat(iso_day)
    start, end = date(day.year, 1, 1), date(day.year + 1, 1, 1)
    return day.year + (day - start) / (end - start)
