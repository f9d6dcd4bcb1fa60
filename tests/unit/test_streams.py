from __future__ import annotations

import functools
import threading
from typing import Any

import numpy as np
import pytest

import repartir
from repartir import space, streams

PINNED = [3138880660645954791, 2504868544887212445, 3079936659316455617]


def first(generator: np.random.Generator) -> list[int]:
    return [int(number) for number in generator.integers(2**62, size=3)]


class TestRng:
    def test_the_bits_are_pinned(self) -> None:
        assert first(repartir.rng(7, 0x6D63, 812)) == PINNED

    def test_the_tags_of_keys_are_pinned(self) -> None:
        assert (streams.MONTE_CARLO, streams.SWEEP, space.SAMPLED) == (0x6D63, 0x7377, 0x7370)

    def test_they_are_those_of_numpy(self) -> None:
        sequence = np.random.SeedSequence(7, spawn_key=(1, 2))
        assert first(repartir.rng(7, 1, 2)) == first(np.random.Generator(np.random.PCG64DXSM(sequence)))

    @pytest.mark.parametrize("seed", [0, np.int64(3), 2**200, [1, 2], (3,), np.array([4, 5])])
    def test_the_same_again(self, seed: Any) -> None:
        assert first(repartir.rng(seed, 1)) == first(repartir.rng(seed, 1)) != first(repartir.rng(seed, 2))

    def test_a_seed_sequence_is_not_advanced_and_keeps_its_key(self) -> None:
        given = np.random.SeedSequence(7, spawn_key=(5,))
        assert first(repartir.rng(given, 1)) == first(repartir.rng(7, 5, 1)) == first(repartir.rng(given, 1))
        assert given.n_children_spawned == 0

    def test_the_size_of_its_pool_counts(self) -> None:
        given = np.random.SeedSequence(7, pool_size=8)
        assert first(repartir.rng(given)) == first(
            np.random.Generator(np.random.PCG64DXSM(np.random.SeedSequence(7, pool_size=8)))
        )

    def test_none_is_other_bits_each_time(self) -> None:
        assert first(repartir.rng(None)) != first(repartir.rng(None))

    @pytest.mark.parametrize(
        ("seed", "error"),
        [
            (-1, ValueError),
            ([], ValueError),
            ([1, -2], ValueError),
            (True, TypeError),
            (1.5, TypeError),
            ("7", TypeError),
            ([1.5], TypeError),
            (b"7", TypeError),
            ({1}, TypeError),
        ],
    )
    def test_what_is_no_seed_is_refused(self, seed: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match="seed"):
            repartir.rng(seed)

    @pytest.mark.parametrize("word", [-1, 2**32])
    def test_words_of_keys_that_would_meet_others_are_refused(self, word: int) -> None:
        with pytest.raises(ValueError, match=str(word)):
            repartir.rng(1, word)

    def test_words_of_keys_are_integers(self) -> None:
        with pytest.raises(TypeError, match=r"the words of a key must be integers, not \(2, 1\.5\)"):
            repartir.rng(1, 2, 1.5)  # type: ignore[arg-type]


class TestTaskRng:
    def test_elsewhere_it_raises(self) -> None:
        with pytest.raises(RuntimeError, match="map_seeded"):
            repartir.task_rng()

    def test_in_a_task_it_is_the_same_generator_each_time(self) -> None:
        outer, inner = repartir.rng(1), repartir.rng(2)
        with streams.stream_of_task(outer):
            assert repartir.task_rng() is outer
            with streams.stream_of_task(inner):
                assert repartir.task_rng() is inner
            assert repartir.task_rng() is outer
        with pytest.raises(RuntimeError):
            repartir.task_rng()

    def test_other_threads_have_none(self) -> None:
        seen: list[BaseException] = []

        def look() -> None:
            try:
                repartir.task_rng()
            except RuntimeError as exc:
                seen.append(exc)

        with streams.stream_of_task(repartir.rng(1)):
            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
        assert len(seen) == 1


class Model:
    def run(self, item: int, rng: Any = None) -> Any:
        return rng

    def __call__(self, item: int, *, rng: Any) -> Any:
        return rng

    def plain(self, item: int) -> int:
        return item


def positional(rng: Any, /) -> None: ...


def anything(**options: Any) -> None: ...


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (Model().run, True),
        (Model(), True),
        (Model().plain, False),
        (lambda item, rng: item, True),
        (lambda item: item, False),
        (functools.partial(Model().run, 1), True),
        (functools.partial(Model().run, rng=1), False),
        (functools.partial(functools.partial(Model().run, rng=1), 2), False),
        (functools.partial(lambda rng, item: item, 1), False),
        (positional, False),
        (anything, False),
        (abs, False),
        (dict, False),
        (np.add, False),
    ],
)
def test_which_functions_take_a_generator(fn: Any, expected: bool) -> None:
    assert streams.takes_rng(fn) is expected


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (7, "repartir.rng(7, 0x6D63, 812)"),
        ((7, 8), "repartir.rng((7, 8), 0x6D63, 812)"),
        (np.random.SeedSequence(7), "repartir.rng(numpy.random.SeedSequence(7), 0x6D63, 812)"),
        (
            np.random.SeedSequence([7, 8], spawn_key=(1,), pool_size=8),
            "repartir.rng(numpy.random.SeedSequence([7, 8], spawn_key=(1,), pool_size=8), 0x6D63, 812)",
        ),
    ],
)
def test_a_replay_is_what_users_type(seed: Any, expected: str) -> None:
    text = streams.replay(streams.settled(seed), streams.MONTE_CARLO, 812)
    assert text == expected
    assert first(eval(text, {"repartir": repartir, "numpy": np})) == first(repartir.rng(seed, 0x6D63, 812))


def test_an_item_of_that_number_is_no_batch() -> None:
    assert streams.replay(7, streams.MONTE_CARLO) == "repartir.rng(7, 28003)"
    assert first(repartir.rng(7, 28003)) != first(repartir.rng(7, 28003, 0))
