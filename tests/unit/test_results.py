from __future__ import annotations

import csv
import importlib.util
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from repartir import SweepResult, SweepRow, tables
from tests.helpers import module_main


@dataclass
class Fit:
    loss: float
    name: str


class FitOf(NamedTuple):
    loss: float
    name: str


def row(params: dict[str, Any], result: Any, repeat: int = 0, error: BaseException | None = None) -> SweepRow:
    return SweepRow(params, repeat, result, error, None if error is None else "in fit", 0.5, 1, 2)


def found(*rows: SweepRow) -> SweepResult:
    return SweepResult(rows, 7, total=len(rows))


LOSSES = found(
    row({"lr": 0.1}, {"loss": 3.0}),
    row({"lr": 0.1}, {"loss": 1.0}, 1),
    row({"lr": 1}, {"loss": 1.5}),
    row({"lr": 1}, {"loss": 1.7}, 1),
    row({"lr": 2}, {"loss": 0.1}),
    row({"lr": 2}, None, 1, ValueError("no")),
    row({"lr": 3}, {"loss": math.nan}),
)


class TestBest:
    def test_the_best_mean_over_the_repeats(self) -> None:
        best = LOSSES.best("loss")
        assert (best.params, best.mean) == ({"lr": 1}, pytest.approx(1.6))
        assert best.stderr == pytest.approx(0.1)
        assert [row.repeat for row in best.rows] == [0, 1]
        assert best.result == {"loss": 1.5}
        assert repr(best) == "<Best lr=1: 1.6 ± 0.1>"

    def test_max(self) -> None:
        assert LOSSES.best("loss", mode="max").params == {"lr": 0.1}

    def test_a_function_of_the_result(self) -> None:
        assert LOSSES.best(lambda result: -result["loss"]).params == {"lr": 0.1}

    def test_results_that_are_numbers(self) -> None:
        best = found(row({"x": 1}, 3), row({"x": 2}, np.float32(2))).best()
        assert (best.params, best.mean) == ({"x": 2}, 2.0)
        assert math.isnan(best.stderr)
        assert repr(best) == "<Best x=2: 2>"

    @pytest.mark.parametrize(
        ("rows", "told"),
        [
            ([row({"x": 1}, {"acc": 1})], "no finished row has the metric 'loss': results have acc"),
            ([row({"x": 1}, None, error=KeyError())], "all rows failed"),
            ([], "there are no rows"),
            ([row({"x": 1}, {"loss": {"a": 1}})], "has a number for 'loss': it is of type dict"),
            (
                [row({"x": 1}, {"loss": math.nan}), row({"x": 2}, {"loss": None})],
                "has a number for 'loss': it is nan or None",
            ),
            ([row({"x": 1}, None)], "results are None"),
            ([row({"x": 1}, 3)], "results are of type int"),
            ([row({"x": 1}, {})], "results are of type dict"),
        ],
    )
    def test_no_row_has_it(self, rows: list[SweepRow], told: str) -> None:
        with pytest.raises(ValueError, match=told):
            found(*rows).best("loss")

    def test_results_that_are_no_numbers(self) -> None:
        with pytest.raises(ValueError, match="has a number for a result: results are nan"):
            found(row({"x": 1}, math.nan)).best()

    @pytest.mark.parametrize("kind", [Fit, FitOf])
    def test_entries_of_dataclasses_and_named_tuples(self, kind: Any) -> None:
        result = found(row({"x": 1}, kind(0.5, "a")), row({"x": 2}, kind(0.25, "b")))
        assert result.best("loss").params == {"x": 2}
        assert result.columns()["name"] == ["a", "b"]

    def test_points_have_what_the_best_has(self) -> None:
        point = LOSSES.points()[1]
        assert (point.params, point.mean("loss")) == (point.rows[0].params, LOSSES.best("loss").mean)
        assert point.stderr("loss") == LOSSES.best("loss").stderr

    def test_another_mode(self) -> None:
        with pytest.raises(ValueError, match='mode must be "min" or "max", not \'least\''):
            LOSSES.best("loss", mode="least")


CLASHING = found(
    row(
        {"lr": 0.1, "seconds": 9, "model": "svm"},
        {"loss": 1.0, "lr": 0.2, "worker": "w", "path": np.arange(3)},
    ),
    row({"lr": 1, "model": None}, {"loss": 2.0, "path": np.arange(3) + 1}, 1),
    row({"lr": 2, "layers": [64, 64]}, None, 2, ValueError("no")),
)


class TestColumns:
    def test_names_that_clash_say_whose_they_are(self) -> None:
        assert {name: CLASHING.columns()[name] for name in CLASHING.columns() if name != "path"} == {
            "lr": [0.1, 1, 2],
            "seconds": [9, None, None],
            "model": ["svm", None, None],
            "layers": [None, None, [64, 64]],
            "repeat": [0, 1, 2],
            "loss": [1.0, 2.0, None],
            "result.lr": [0.2, None, None],
            "result.worker": ["w", None, None],
            "row.seconds": [0.5, 0.5, 0.5],
            "worker": [1, 1, 1],
            "attempts": [2, 2, 2],
            "error": [None, None, "ValueError: no"],
        }

    def test_a_result_that_is_no_dict(self) -> None:
        assert found(row({"x": 1}, 5)).columns()["result"] == [5]


class TestFiles:
    def test_texts_of_values_stand_in_csv_as_they_are(self) -> None:
        space = [Path("/data/ä"), np.sin, [1, "±"], {"a": None}]
        text = found(*(row({"x": value}, 1) for value in space)).to_csv() or ""
        cells = [line["x"] for line in csv.DictReader(text.splitlines())]
        assert cells == ["/data/ä", "<ufunc 'sin'>", '[1, "±"]', '{"a": null}']

    def test_csv(self, tmp_path: Path) -> None:
        path = tmp_path / "table.csv"
        assert CLASHING.to_csv(path) is None
        assert path.read_text() == CLASHING.to_csv()
        with path.open(newline="") as file:
            lines = list(csv.DictReader(file))
        assert [line["loss"] for line in lines] == ["1.0", "2.0", ""]
        assert json.loads(lines[2]["layers"]) == [64, 64]
        assert json.loads(lines[1]["path"]) == [1, 2, 3]

    def test_json(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.json"
        odd = found(row({"x": Path("a")}, {"y": math.inf, "z": np.float32(1.5), "w": (1, {2: math.nan})}))
        odd.to_json(path)
        assert json.loads(path.read_text()) == [
            {
                "params": {"x": "a"},
                "repeat": 0,
                "result": {"y": None, "z": 1.5, "w": [1, {"2": None}]},
                "error": None,
                "seconds": 0.5,
                "worker": 1,
                "attempts": 2,
            }
        ]
        assert json.loads(CLASHING.to_json() or "")[2]["error"] == "ValueError: no"

    def test_an_error_without_a_message_is_told_by_its_class(self) -> None:
        class MuteError(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no text")

        failed = SweepResult([SweepRow({"x": 1}, 0, None, MuteError(), "", 0.0, None, 1)], 7, total=1)
        assert "MuteError: <its message cannot be shown: RuntimeError: no text>" in (failed.to_csv() or "")

    def test_npz(self, tmp_path: Path) -> None:
        path = tmp_path / "table.npz"
        CLASHING.to_npz(path)
        with np.load(path, allow_pickle=False) as table:
            assert table["lr"].tolist() == [0.1, 1, 2]
            assert np.isnan(table["loss"]).tolist() == [False, False, True]
            assert table["layers"].tolist() == ["", "", "[64, 64]"]
            assert table["path"].tolist() == ["[0, 1, 2]", "[1, 2, 3]", ""]
            assert table["repeat"].dtype.kind == "i"

    def test_arrays_of_one_shape_stay_arrays_in_npz(self, tmp_path: Path) -> None:
        path = tmp_path / "table.npz"
        found(row({"x": 1}, np.arange(3)), row({"x": 2}, np.arange(3) * 2)).to_npz(path)
        with np.load(path) as table:
            assert table["result"].tolist() == [[0, 1, 2], [0, 2, 4]]

    def test_whole_numbers_beyond_64_bits_are_text(self, tmp_path: Path) -> None:
        path, table = tmp_path / "table.npz", found(row({"x": 2**70}, 1), row({"x": 3}, 2))
        table.to_npz(path)
        with np.load(path, allow_pickle=False) as loaded:
            assert loaded["x"].tolist() == [str(2**70), "3"]
        assert tables.for_arrow([2**70, 3, None]) == [str(2**70), "3", None]
        assert tables.for_arrow([2**62, 3, None]) == [2**62, 3, None]

    def test_dataframe(self) -> None:
        pandas = pytest.importorskip("pandas")
        frame = LOSSES.to_dataframe()
        assert isinstance(frame, pandas.DataFrame)
        assert frame.groupby("lr").loss.mean()[1.0] == pytest.approx(1.6)
        assert list(frame.columns) == ["lr", "repeat", "loss", "seconds", "worker", "attempts", "error"]

    def test_parquet(self, tmp_path: Path) -> None:
        if importlib.util.find_spec("pyarrow") is None:
            pytest.skip("no pyarrow")
        # In a process of its own: pyarrow leaves threads.
        told = module_main(
            tmp_path,
            """
            import json
            from pyarrow import parquet
            from repartir import SweepResult, SweepRow
            rows = [
                SweepRow({"lr": 0.1}, 0, {"loss": 1.0}, None, None, 0.5, 1, 2),
                SweepRow({"lr": 1}, 1, {"loss": 2}, None, None, 0.5, 1, 2),
                SweepRow({"lr": 2, "layers": [64, 64]}, 2, None, None, None, 0.5, None, 2),
            ]
            SweepResult(rows, 7, total=3).to_parquet("table.parquet")
            print(json.dumps(parquet.read_table("table.parquet").to_pydict()))
            """,
        )
        assert told.returncode == 0, told.stderr
        table = json.loads(told.stdout)
        assert table["lr"] == [0.1, 1.0, 2.0]
        assert table["loss"] == [1.0, 2.0, None]
        assert table["layers"] == [None, None, "[64, 64]"]
        assert table["worker"] == [1, 1, None]

    @pytest.mark.parametrize(
        ("library", "call"),
        [
            ("pandas", lambda: LOSSES.to_dataframe()),
            ("pyarrow", lambda: LOSSES.to_parquet("never")),
            ("matplotlib", lambda: LOSSES.plot("loss")),
        ],
    )
    def test_without_the_library_the_remedy_is_told(
        self, library: str, call: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(__import__("sys").modules, library, None)
        with pytest.raises(ImportError, match=f"pip install {library}"):
            call()


class TestPlot:
    @pytest.fixture(autouse=True)
    def closed(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setenv("MPLBACKEND", "agg")
        self.pyplot = pytest.importorskip("matplotlib.pyplot")
        yield
        self.pyplot.close("all")

    def test_a_line_over_one_parameter(self) -> None:
        axes = LOSSES.plot("loss")
        (line, *_) = axes.lines
        assert line.get_xdata().tolist() == [0.1, 1, 2]
        assert line.get_ydata().tolist() == pytest.approx([2.0, 1.6, 0.1])
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("lr", "loss")

    def test_names_on_the_axis_of_what_is_no_number(self) -> None:
        axes = found(row({"model": "svm"}, 1), row({"model": "tree"}, 2)).plot()
        assert [text.get_text() for text in axes.get_xticklabels()] == ["svm", "tree"]

    def test_a_heat_map_over_two(self) -> None:
        rows = [row({"x": x, "y": y, "fixed": 1}, x * 10 + y) for x in (2, 1) for y in (5, 6, 7)]
        axes = found(*rows[:-1]).plot()
        (image,) = axes.images
        assert image.get_array().filled(np.nan)[:, 1].tolist() == [25, 26, 27]
        assert np.isnan(image.get_array().filled(np.nan)[2, 0])
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("x", "y")

    def test_only_so_many_cells_of_a_heat_map_are_labelled_as_there_is_room_for(self) -> None:
        rows = [row({"a": a, "b": b}, a) for a in range(31) for b in range(3)]
        axes = found(*rows).plot()
        assert axes.get_xticks().tolist() == list(range(0, 31, 2))
        assert [label.get_text() for label in axes.get_xticklabels()] == list(map(str, range(0, 31, 2)))
        assert axes.get_yticks().tolist() == [0, 1, 2]

    def test_of_three_one_says_which(self) -> None:
        rows = found(*(row({"a": a, "b": b, "c": c}, a + c) for a in (1, 2) for b in (1, 2) for c in (1, 2)))
        with pytest.raises(ValueError, match=r"3 parameters have several values \(a, b, c\)"):
            rows.plot()
        assert rows.plot(x="a").lines[0].get_ydata().tolist() == [2.5, 3.5]
        assert rows.plot(x="a", y="c").images

    def test_numbers_that_grow_by_factors_lie_evenly(self) -> None:
        grown = found(*(row({"lr": lr}, lr) for lr in (1e-4, 1e-3, 1e-2, 0.1, 1))).plot()
        assert grown.get_xscale() == "log"
        for even in (range(1, 100, 7), (0, 1, 100), (1, 3, 9), (-10, 1, 100)):
            assert found(*(row({"n": n}, n) for n in even)).plot().get_xscale() == "linear", even

    def test_labels_have_no_line_between(self) -> None:
        axes = found(row({"model": "svm"}, 1), row({"model": "tree"}, 2)).plot()
        assert axes.lines[0].get_linestyle() == "None"

    def test_pairs_that_were_drawn_are_points(self) -> None:
        drawn = [(10.0**-n, n * n % 7 + n / 10) for n in range(6)]
        axes = found(*(row({"a": a, "b": b}, a + b, k) for a, b in drawn for k in range(2))).plot()
        assert not axes.images
        (points,) = axes.collections
        assert sorted(map(tuple, points.get_offsets().tolist())) == sorted(drawn)
        assert sorted(points.get_array()) == pytest.approx(sorted(a + b for a, b in drawn))
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")

    def test_on_given_axes(self) -> None:
        _, axes = self.pyplot.subplots()
        assert LOSSES.plot("loss", ax=axes) is axes

    def test_what_cannot_be_drawn(self) -> None:
        with pytest.raises(ValueError, match="there is no parameter 'z': the sweep has lr"):
            LOSSES.plot("loss", x="z")
        with pytest.raises(ValueError, match="nothing to draw: no row has a number for acc"):
            LOSSES.plot("acc")
        with pytest.raises(ValueError, match="y= goes with x="):
            LOSSES.plot("loss", y="lr")
