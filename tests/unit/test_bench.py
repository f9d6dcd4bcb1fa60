"""The arithmetic and the plumbing of the benchmarks; no speeds."""

import json
import mmap
import os
import tempfile
import threading
from io import StringIO

import psutil
import pytest
from rich.console import Console

from bench import run
from bench.array_steady import growth
from bench.array_threshold import BESIDE, IN_BAND, crossover, draw, loss
from bench.arrays import WARM_UP, seconds_per_call
from bench.common import client_process, in_forks, measure_all, rows_of
from bench.contenders import ARRAY_CONTENDERS, CONTENDERS, OURS, STDLIB, Contender, Pool
from bench.efficiency import efficiency
from bench.gate import Gate
from bench.joblib_backend import take_turns
from bench.procfs import memory, open_files, shared_mappings, thread_uses, tree
from bench.report import (
    MET,
    MISSED,
    NOT_MEASURED,
    Goal,
    Report,
    Row,
    from_json,
    number,
    print_report,
    to_json,
)
from bench.stats import Series, Spread, alternate, pair_ratios, percentile, spread
from bench.tasks import pass_gate


def test_spread_is_median_with_extremes():
    assert spread([3.0, 1.0, 2.0, 10.0]) == Spread(2.5, 1.0, 10.0)
    with pytest.raises(ValueError, match="no measurements"):
        spread([])


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (99, 99), (100, 100), (0.5, 1)])
def test_percentile_is_nearest_rank(percent, expected):
    assert percentile(list(range(100, 0, -1)), percent) == expected


@pytest.mark.parametrize("percent", [0, -1, 100.1])
def test_percentile_refuses_percents_outside_its_range(percent):
    with pytest.raises(ValueError, match="percent"):
        percentile([1.0], percent)
    with pytest.raises(ValueError, match="no measurements"):
        percentile([], 50)


def test_a_drift_of_the_machine_cancels_in_pairs():
    ours = [8.0, 16.0, 32.0]
    theirs = [1.0, 2.0, 4.0, 100.0]
    assert pair_ratios(ours, theirs) == [8.0, 8.0, 8.0]


def test_alternate_goes_round_and_ends_each_in_its_own_time():
    seen = []

    def measuring(name):
        return lambda: seen.append(name) or len(seen)

    series = alternate({name: measuring(name) for name in "ABC"}, {"A": 3, "B": 3, "C": 1})
    assert "".join(seen) == "ABCABAB"
    assert series["C"].values == [3]
    assert series["A"].values == [1, 4, 6]


def test_alternate_keeps_the_error_and_goes_on_with_the_others():
    def broken():
        raise OSError("no such luck")

    series = alternate({"A": broken, "B": lambda: 1.0}, {"A": 2, "B": 2})
    assert series["A"] == Series([], "OSError: no such luck")
    assert series["B"].values == [1.0, 1.0]


@pytest.mark.parametrize(
    ("median", "at_least", "verdict"),
    [(8.0, True, MET), (7.99, True, MISSED), (8.0, False, MET), (8.01, False, MISSED)],
)
def test_a_goal_is_judged_by_the_median_and_includes_its_bound(median, at_least, verdict):
    assert Goal("g", Spread(median, 0.0, 99.0), 8.0, at_least).verdict == verdict


def test_a_goal_without_a_measurement_is_not_met():
    goal = Goal("g", None, 8.0, at_least=True)
    assert goal.verdict == NOT_MEASURED
    assert not Report("r", "t", [], [goal]).all_met


def make_report() -> Report:
    one = Spread(1.0, 0.5, 2.0)
    rows = [
        Row("c", OURS, one, "µs"),
        Row("c", STDLIB, None, "µs", note="not installed"),
        Row("c", "x", one, "µs", one),
    ]
    return Report("figure", "title", rows, [Goal("g", one, 2.0, at_least=True)], 1.5)


def test_a_report_survives_json():
    plain = json.loads(json.dumps(to_json(make_report())))
    assert plain["goals"][0]["verdict"] == MISSED
    assert from_json(plain) == make_report()


def test_a_printed_report_shows_figures_notes_and_verdicts():
    out = StringIO()
    print_report(make_report(), Console(file=out, width=200))
    assert "not installed" in out.getvalue()
    assert "1 (0.5–2)" in out.getvalue()
    assert "missed figure: g ≥ 2" in out.getvalue()


def test_number_keeps_three_digits_or_the_whole_number():
    assert [number(x) for x in (0.012345, 15.26, 999.4, 1234567.8)] == ["0.0123", "15.3", "999", "1 234 568"]


def test_rows_name_the_missing_and_pair_ours_with_the_rest():
    series = {OURS: Series([2.0, 4.0]), STDLIB: Series([1.0, 1.0]), "pebble": Series([], "boom")}
    rows = {row.contender: row for row in rows_of("c", series, "u", {"mpire": "cannot"})}
    assert rows[STDLIB].ratio == Spread(3.0, 2.0, 4.0)
    assert rows[OURS].ratio is None
    assert rows["loky"].note == "not installed"
    assert rows["mpire"].note == "cannot"
    assert rows["pebble"].value is None
    assert rows["pebble"].note == "boom"


def test_contenders_that_are_not_installed_are_left_out(monkeypatch):
    missing = Contender("missing", "no_such_module_at_all", CONTENDERS[STDLIB].open)
    monkeypatch.setattr("bench.common.CONTENDERS", {STDLIB: CONTENDERS[STDLIB], "missing": missing})
    series = measure_all(lambda contender: 1.0, rounds=2, peer_rounds=1, yardsticks={"bare": lambda: 2.0})
    assert series == {STDLIB: Series([1.0, 1.0]), "bare": Series([2.0, 2.0])}


def test_only_the_contenders_asked_for_take_part_and_have_a_row():
    missing = Contender("missing", "no_such_module_at_all", CONTENDERS[STDLIB].open)
    chosen = {STDLIB: CONTENDERS[STDLIB], "missing": missing}
    series = measure_all(lambda contender: 1.0, rounds=1, peer_rounds=1, contenders=chosen)
    rows = rows_of("c", series, "u", contenders=chosen)
    assert [(row.contender, row.note) for row in rows] == [(STDLIB, ""), ("missing", "not installed")]


def test_a_call_that_joblib_was_given_runs_when_its_result_is_taken():
    pytest.importorskip("joblib")
    with ARRAY_CONTENDERS["joblib"].open(1) as pool:
        assert pool.take(pool.submit(divmod, 7, 2)) == (3, 1)
        pool.map(abs, [1, 2], 1)


def test_each_timed_call_has_an_array_of_its_own():
    seen = []
    pool = Pool(lambda fn, array: seen.append(array), lambda nothing: nothing, lambda *_: None)
    assert seconds_per_call(pool, abs, 1024, calls=3) >= 0
    assert len({id(array) for array in seen}) == WARM_UP + 3
    assert all(array.nbytes == 1024 for array in seen)


@pytest.mark.parametrize(("from_nothing", "warm_up"), [(False, ["repartir", "loky"]), (True, [])])
def test_backends_take_turns_to_be_first(monkeypatch, from_nothing, warm_up):
    seen = []
    monkeypatch.setattr("bench.joblib_backend.seconds", lambda run, backend: seen.append(backend) or 1.0)
    monkeypatch.setattr("bench.joblib_backend.end_workers", lambda: seen.append("end"))
    found = take_turns(print, 2, from_nothing=from_nothing)
    assert [name for name in seen if name != "end"] == [*warm_up, "loky", "repartir", "repartir", "loky"]
    assert seen.count("end") == 4 * from_nothing
    assert found == {"repartir": Series([1.0, 1.0]), "loky": Series([1.0, 1.0])}


def test_forks_share_the_work(tmp_path):
    def work(times):
        (tmp_path / str(os.getpid())).write_text(str(times))

    assert in_forks(work, 10, 2) > 0
    assert [path.read_text() for path in tmp_path.iterdir()] == ["5", "5"]


def test_growth_is_of_the_process_that_grew_most():
    looks = [{"rss": [100, 200]}, {"rss": [101, 260]}, {"rss": [110, 200]}]
    assert list(growth(looks)) == [("rss", pytest.approx(10), pytest.approx(30))]


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ({1: 1.5, 2: 1.0, 4: 0.5}, 2),
        ({1: 0.9, 2: 1.1, 4: 0.5}, 4),
        ({1: 0.5, 2: 0.5}, 1),
        ({1: 0.5, 2: 1.1}, None),
    ],
)
def test_a_crossover_holds_for_all_larger_sizes(ratios, expected):
    assert crossover(ratios) == expected


def test_the_loss_by_a_threshold_is_that_of_the_worst_size():
    times = {
        1: {IN_BAND: Series([10.0]), BESIDE: Series([12.0])},
        2: {IN_BAND: Series([10.0]), BESIDE: Series([5.0])},
    }
    assert loss(times, 2) == Spread(10 / 12, 10 / 12, 10 / 12)
    assert loss(times, 1) == Spread(1.2, 1.2, 1.2)
    assert loss(times, 4) == Spread(2.0, 2.0, 2.0)
    assert loss({}, 1) is None


@pytest.mark.slow
def test_the_curve_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    ratios = {1024: Spread(1.2, 1.1, 1.3), 2048: Spread(0.9, 0.8, 1.0)}
    # In a fork, since matplotlib keeps descriptors of its fonts.
    in_forks(lambda _: draw(tmp_path / "curve.svg", {"one by one": ratios}, 2048), 1, 1)
    assert "<svg" in (tmp_path / "curve.svg").read_text()


def test_efficiency_is_work_over_workers_times_wall(monkeypatch):
    monkeypatch.setattr("bench.efficiency.cpu_seconds", lambda turns, times: times * 1e-3)
    assert efficiency(lambda: 1.0, turns=1, tasks=1000, workers=2) == pytest.approx(0.5)


def test_a_gate_holds_until_it_is_opened():
    passed = []
    with Gate() as gate:
        waiting = threading.Thread(target=lambda: passed.append(pass_gate(gate.path)))
        waiting.start()
        waiting.join(timeout=0.02)
        assert waiting.is_alive()
        with gate.opened():
            waiting.join(timeout=10)
        assert passed == [os.getpid()]


def test_procfs_sees_this_process():
    own = os.getpid()
    assert tree(own)[0] == own
    assert thread_uses([own])[own, own].cpu_ns > 0
    size = memory(own)
    assert 0 < size.private <= size.proportional <= size.resident


def test_procfs_counts_descriptors_and_shared_mappings():
    own = os.getpid()
    files, mappings = open_files(own), shared_mappings(own)
    with tempfile.TemporaryFile() as file:
        file.truncate(mmap.PAGESIZE)
        with mmap.mmap(file.fileno(), mmap.PAGESIZE):
            assert open_files(own) == files + 2  # a mapping keeps a descriptor of its own
            assert shared_mappings(own) == mappings + 1


def test_run_refuses_unknown_names(capsys):
    with pytest.raises(SystemExit) as refused:
        run.main(["no_such_figure"])
    assert refused.value.code == 2
    assert "no benchmark named no_such_figure" in capsys.readouterr().err


@pytest.mark.parametrize(("check", "code"), [([], 0), (["--check"], 1)])
def test_a_miss_fails_the_run_only_with_check(monkeypatch, capsys, check, code):
    monkeypatch.setattr(run, "run_one", lambda name, arguments: make_report())
    assert run.main(["throughput", "--json", *check]) == code
    plain = json.loads(capsys.readouterr().out)
    assert plain["reports"][0]["goals"][0]["verdict"] == MISSED


def test_a_failing_benchmark_fails_the_run_and_the_others_still_run(monkeypatch, capsys):
    def one(name, arguments):
        if name == "latency":
            raise run.BenchmarkError("latency: exit code 3")
        return make_report()

    monkeypatch.setattr(run, "run_one", one)
    assert run.main(["latency", "throughput", "--json"]) == 1
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["reports"]) == 1
    assert "latency: exit code 3" in captured.err


def test_nothing_of_an_abandoned_client_is_left():
    with client_process("idle", "--client", STDLIB, "1") as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        pids = tree(client.pid)
        assert len(pids) == 2
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10)
    assert not alive


def test_a_benchmark_that_breaks_says_how(monkeypatch):
    with pytest.raises(
        run.BenchmarkError, match=r"latency: exit code 2\n(.|\n)*unrecognized arguments: --bogus"
    ):
        run.run_one("latency", ["--bogus"])


def test_a_benchmark_that_does_not_end_is_ended(monkeypatch):
    monkeypatch.setattr(run, "LIMIT_S", 0.01)
    with pytest.raises(run.BenchmarkError, match="no end within"):
        run.run_one("idle", ["--quick"])
