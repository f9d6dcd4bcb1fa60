from __future__ import annotations

import functools
import gc
import json
import math
import sys
import threading
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from repartir.codec import Encoded
from repartir.errors import TaskNotSerializable
from repartir.fingerprint import is_immutable
from repartir.functions import FunctionCache, FunctionRef, FunctionTable
from tests.unit.peer import run_main


@pytest.fixture
def table() -> FunctionTable:
    return FunctionTable()


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The functions that were pickled, one entry each time."""
    from repartir import functions

    seen: list[Any] = []

    def counted(fn: Any, *options: Any) -> Any:
        seen.append(fn)
        return original(fn, *options)

    original = functions.encode_function
    monkeypatch.setattr(functions, "encode_function", counted)
    return seen


def dynamic(source: str, **names: Any) -> dict[str, Any]:
    """The namespace of `source`, run as a module that nobody can import: all its functions go by value."""
    namespace: dict[str, Any] = {"__name__": "__main__", **names}
    exec(source, namespace)
    return namespace


def load(ref: FunctionRef) -> Callable[..., Any]:
    if isinstance(ref.blob, Encoded):
        return FunctionCache().put(
            ref.key, ref.blob.meta, [bytearray(bytes(part)) for part in ref.blob.buffers]
        )
    return FunctionCache().put(ref.key, ref.blob)


def module_level(x: int) -> int:
    return x + 1


class ModuleClass:
    def method(self) -> str:
        return "method"


# --- encoded once -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fn", [module_level, json.dumps, len, math.sin, int, ModuleClass, functools.partial(module_level, 2)]
)
def test_what_workers_import_is_encoded_once(fn: Any, table: FunctionTable, encodings: list[Any]) -> None:
    refs = {table.encode(fn) for _ in range(3)}
    assert len(refs) == len(encodings) == 1
    ref = refs.pop()
    assert isinstance(ref.blob, bytes)
    assert len(ref.blob) < 200
    assert ref.head == b""
    if not isinstance(fn, functools.partial):
        assert load(ref) is fn


def test_a_replaced_module_function_goes_by_value(table: FunctionTable, monkeypatch: Any) -> None:
    original = module_level
    first = table.encode(original)
    monkeypatch.setattr(sys.modules[__name__], "module_level", lambda x: 0)
    second = table.encode(original)
    assert second.key != first.key
    assert load(second)(1) == 2


STABLE = {
    "plain": "def f(i): return i",
    "atoms": "K = 3\nT = (1, ('a', None))\ndef f(i): return K, T",
    "modules": "import math, os.path\ndef f(i): return math.pi, os.path.sep",
    "functions": "def g(): return 1\ndef f(i): return g()",
    "mutual": "def g(n): return f(n - 1) if n else 0\ndef f(i): return g(i)",
    "imported": "from json import dumps\nfrom decimal import Decimal as D\ndef f(i): return dumps(int(D(3)))",
    "builtins": "def f(i): return len(range(i))",
    "recursive": "def f(i): return f(i - 1) if i else 0",
    "defaults": "def f(i, a=1, *, b='b'): return a, b",
    "closure": "def make(n):\n  def inner(i): return n\n  return inner\nf = make(3)",
    "wrapped": """
import functools
def deco(g):
    @functools.wraps(g)
    def wrapper(i): return g(i)
    return wrapper
@deco
def f(i): return i
""",
    "numpy": "from numpy import sin, dot, float64\nX = float64(3)\ndef f(i): return dot(sin(i), X)",
    "type": "from tests.unit.test_functions import ModuleClass\nf = lambda i: ModuleClass().method()",
}


@pytest.mark.parametrize("source", STABLE.values(), ids=STABLE)
def test_stable_functions_are_encoded_once(source: str, table: FunctionTable, encodings: list[Any]) -> None:
    namespace = dynamic(source)
    fn = namespace["f"]
    refs = {table.encode(fn) for _ in range(3)}
    assert len(refs) == len(encodings) == 1
    np.testing.assert_equal(load(refs.pop())(2), fn(2))


# (source, a change, the function's value after it)
CHANGES = {
    "atom": ("K = 3\ndef f(): return K", "K = 4", 4),
    "list appended": ("L = []\ndef f(): return len(L)", "L.append(1)", 1),
    "dict in a list": ("L = [{}]\ndef f(): return L[0]", "L[0]['a'] = 1", {"a": 1}),
    "helper redefined": ("def g(): return 1\ndef f(): return g()", "def g(): return 2", 2),
    "helper's helper": (
        "def h(): return 1\ndef g(): return h()\ndef f(): return g()",
        "def h(): return 2",
        2,
    ),
    "helper's atom": ("K = 1\ndef g(): return K\ndef f(): return g()", "K = 2", 2),
    "nested code": ("K = 1\ndef f(): return [(lambda: K)() for _ in range(1)]", "K = 2", [2]),
    "code": ("def f(): return 1", "f.__code__ = (lambda: 2).__code__", 2),
    "defaults": ("def f(a=1): return a", "f.__defaults__ = (2,)", 2),
    "mutable default": ("def f(a=[]): return len(a)", "f.__defaults__[0].append(1)", 1),
    "keyword default": ("def f(*, a=1): return a", "f.__kwdefaults__['a'] = 2", 2),
    "keyword defaults": ("def f(*, a=1): return a", "f.__kwdefaults__ = {'a': 3}", 3),
    "keyword default added": ("def f(*, a): return a", "f.__kwdefaults__ = {'a': 3}", 3),
    "attribute": ("def f(): return f.a\nf.a = 1", "f.a = 2", 2),
    "attribute added": ("def f(): return getattr(f, 'a', 0)", "f.a = 2", 2),
    "attribute removed": ("def f(): return getattr(f, 'a', 0)\nf.a = 1", "del f.a", 0),
    "cell": (
        """
def make():
    n = 1
    def f(): return n
    def put(v):
        nonlocal n
        n = v
    return f, put
f, put = make()""",
        "put(5)",
        5,
    ),
    "list in a cell": (
        "def make():\n  v = []\n  return v, lambda: len(v)\nv, f = make()",
        "v.append(1)",
        1,
    ),
    "name defined later": ("def f(): return 'K' in globals() and K", "K = 2", 2),
    "builtin shadowed": ("def f(): return len('abc')", "def len(x): return -1", -1),
    "global deleted": ("len = lambda x: -1\ndef f(): return len('abc')", "del len", 3),
    "function becomes None": ("def g(): pass\ndef f(): return g is None", "g = None", True),
    "class changed": ("class C:\n  k = 1\ndef f(): return C.k", "C.k = 2", 2),
    "class redefined": ("class C:\n  k = 1\ndef f(): return C().k", "class C:\n  k = 3", 3),
    "instance changed": (
        "class C: pass\nc = C(); c.k = 1\ndef f(): return c.k",
        "c.k = 2",
        2,
    ),
    "array changed": (
        "import numpy as np\nA = np.zeros(3)\ndef f(): return A.sum()",
        "A[:] = 1",
        3,
    ),
    "small array in a cell": (
        "import numpy as np\na = np.zeros(3)\nf = (lambda a: lambda: a.sum())(a)",
        "a[:] = 1",
        3,
    ),
    "set in a tuple": ("T = (set(),)\ndef f(): return len(T[0])", "T[0].add(1)", 1),
    "dynamic module": (
        "import types\nm = types.ModuleType('m'); m.k = 1\ndef f(): return m.k",
        "m.k = 2",
        2,
    ),
}


@pytest.mark.parametrize(("source", "change", "value"), CHANGES.values(), ids=CHANGES)
def test_a_changed_function_is_encoded_anew(
    source: str, change: str, value: Any, table: FunctionTable
) -> None:
    namespace = dynamic(source)
    first = table.encode(namespace["f"])
    exec(change, namespace)
    assert namespace["f"]() == value
    second = table.encode(namespace["f"])
    assert second.key != first.key
    assert load(second)() == value


def test_equal_contents_have_one_key_and_one_ref(table: FunctionTable, encodings: list[Any]) -> None:
    fn = dynamic("L = [1]\ndef f(): return L")["f"]
    first = table.encode(fn)
    first.head = b"kept"
    assert table.encode(fn) is first
    assert len(encodings) == 2
    assert first.key != 0
    assert f"{first.key:016x}" in repr(first)
    assert FunctionTable().encode(fn).key == first.key


def test_a_changed_partial_is_encoded_anew(table: FunctionTable, encodings: list[Any]) -> None:
    call = functools.partial(dynamic("def f(a, *, b=0, c=0): return a, b, c")["f"], 1, b=2)
    assert table.encode(call) is table.encode(call)
    assert len(encodings) == 1
    call.keywords["b"] = 3
    assert load(table.encode(call))() == (1, 3, 0)
    call.keywords["c"] = 4
    assert load(table.encode(call))() == (1, 3, 4)
    held: list[int] = []
    holder = functools.partial(len, held)
    assert load(table.encode(holder))() == 0
    held.append(1)
    assert load(table.encode(holder))() == 1


def test_a_module_imported_later_goes_along() -> None:
    run_main(
        """
import wsgiref
peer = Peer(fork=False)
def late(): return wsgiref.util.__name__
from repartir.outcome import Error
assert isinstance(peer.outcome(late), Error)
import wsgiref.util
assert peer.run(late) == "wsgiref.util"
"""
    )


def test_once_keeps_one_encoding_for_a_map(table: FunctionTable) -> None:
    fn = dynamic("L = [1]\ndef f(): return list(L)")["f"]
    with table.once(fn) as ref:
        fn.__globals__["L"].append(2)
        assert load(ref)() == [1]
        assert load(table.encode(fn))() == [1, 2]


def test_failures_name_the_part(table: FunctionTable) -> None:
    fn = dynamic("def f(): return LOCK", LOCK=threading.Lock())["f"]
    for _ in range(2):
        with pytest.raises(
            TaskNotSerializable, match=r"the function \(function\): global 'LOCK' of function 'f'"
        ):
            table.encode(fn)
    fn.__globals__["LOCK"] = 3
    assert load(table.encode(fn))() == 3


# --- what is kept alive -------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [STABLE[name] for name in ("closure", "wrapped", "functions", "mutual")])
def test_the_table_keeps_no_function_alive(source: str, table: FunctionTable) -> None:
    namespace = dynamic(source)
    fn = weakref.ref(namespace["f"])
    table.encode(namespace["f"])
    assert len(table) == 1
    namespace.clear()
    gc.collect()
    assert fn() is None
    assert len(table) == 0


def test_the_table_keeps_no_captured_object_alive(table: FunctionTable) -> None:
    class Captured:
        pass

    def make() -> Callable[[], Any]:
        captured = Captured()
        return lambda: captured

    fn = make()
    held = weakref.ref(fn.__closure__[0].cell_contents)  # type: ignore[index]
    table.encode(fn)
    del fn
    assert held() is None


def test_a_ref_lives_as_long_as_its_users_and_then_calls_back(table: FunctionTable) -> None:
    def encode() -> weakref.ref[FunctionRef]:
        fn = dynamic("def f(): return len(X)", X="x" * 2_000_000)["f"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return weakref.ref(table.encode(fn))

    ref = encode()
    gc.collect()
    assert ref() is None


def test_threads_and_the_garbage_collector_do_not_disturb_the_table(table: FunctionTable) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(30):
                namespace = dynamic(f"K = {number * 1000 + step}\ndef f(): return K")
                assert load(table.encode(namespace["f"]))() == number * 1000 + step
                assert table.encode(shared).key == key
        except BaseException as failure:  # noqa: BLE001
            failures.append(failure)

    shared = dynamic("L = [1]\ndef f(): return L")["f"]
    key = table.encode(shared).key
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    finally:
        gc.set_threshold(*threshold)
    assert not failures
    gc.collect()
    assert len(table) == 1


# --- in a worker --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fork", [True, False], ids=["forked before", "fresh interpreter"])
def test_all_kinds_of_callables_run_in_a_worker(fork: bool) -> None:
    run_main(
        f"FORK = {fork}"
        """
peer = Peer(fork=FORK)
import asyncio, functools, json, math
K = 3
def a(n): return 1 if n == 0 else b(n - 1) + 1
def b(n): return 1 if n == 0 else a(n - 1) + K
assert peer.run(a, 4) == a(4)
def deco(f):
    @functools.wraps(f)
    def wrapper(*args): return "wrapped", f(*args)
    return wrapper
@deco
def c(x): return x * 2
assert peer.run(c, 4) == ("wrapped", 8)
def counter():
    n = 0
    def inc():
        nonlocal n
        n += 1
    def get(): return n
    return inc, get
inc, get = counter()
def both():
    inc()
    inc()
    return get()
assert peer.run(both) == 2 and get() == 0
def fact():
    def inner(n): return n * inner(n - 1) if n else 1
    return inner
assert peer.run(fact(), 5) == 120
def empty():
    def inner(): return later
    if not inner: later = 1
    return inner
try: peer.run(empty())
except NameError: pass
else: raise AssertionError("an empty cell was filled")
assert peer.run(lambda key=lambda v: v + 1: key(1)) == 2
class Callable:
    factor = 5
    def method(self, x): return self.factor + x
    @classmethod
    def of_class(cls, x): return cls.factor * x
    @staticmethod
    def static(x): return x
    @property
    def prop(self): return self.factor
    def __call__(self, x): return x + 100
class Derived(Callable):
    def method(self, x): return super().method(x) + 1000
o = Derived()
o.factor = 7
assert peer.run(o.method, 1) == 1008 and peer.run(Callable.of_class, 2) == 10
assert peer.run(Derived.of_class, 2) == 10 and peer.run(Callable.static, 3) == 3 and peer.run(o, 1) == 101
o.factor = 8
assert peer.run(o.method, 1) == 1009 and peer.run(lambda: o.prop) == 8
assert type(peer.run(Derived)) is Derived
async def coroutine(x): return x + 1
assert peer.run(lambda: asyncio.run(coroutine(3))) == 4
def generator(n): yield from range(n)
assert peer.run(lambda: list(generator(3))) == [0, 1, 2]
assert peer.run(functools.partial(a, 0)) == 1
assert peer.run(functools.partial(lambda x, *, y: x - y, y=1), 3) == 2
assert peer.run(math.sqrt, 4) == 2 and peer.run(len, "abc") == 3 and peer.run("abc".upper) == "ABC"
assert peer.run(json.dumps, [1]) == "[1]"
STATE = []
def grow():
    STATE.append(1)
    return shown()
def shown(): return len(STATE)
assert peer.run(grow) == 1 and STATE == []
assert peer.run(lambda: (lambda: __name__)()) == "__main__"
f = peer.run(lambda: lambda x: x + K)
assert f(1) == 4
"""
    )


def test_a_cell_that_redefines_a_function_gets_the_new_one() -> None:
    run_main(
        """
peer = Peer()
def helper(): return 1
def fit(): return helper()
assert peer.run(fit) == 1
def helper(): return 2
assert peer.run(fit) == 2
def fit(): return 3
assert peer.run(fit) == 3
"""
    )


def test_the_cache_is_bounded_by_count(table: FunctionTable) -> None:
    cache = FunctionCache(max_count=2)
    refs = [table.encode(dynamic(f"def f(): return {i}")["f"]) for i in range(3)]
    for ref in refs[:2]:
        cache.put(ref.key, ref.blob)  # type: ignore[arg-type]
    assert cache.get(refs[0].key) is not None
    cache.put(refs[2].key, refs[2].blob)  # type: ignore[arg-type]
    assert [cache.get(ref.key) is not None for ref in refs] == [True, False, True]
    assert len(cache) == 2


def test_the_cache_is_bounded_by_bytes_but_keeps_the_latest() -> None:
    cache = FunctionCache(max_bytes=1_000)
    blob = FunctionTable().encode(module_level).blob
    assert isinstance(blob, bytes)
    for key in range(1, 50):
        cache.put(key, blob)
    assert cache.size_bytes == len(cache) * len(blob) <= 1_000
    cache.put(49, blob)
    assert cache.size_bytes == len(cache) * len(blob)
    cache.put(99, blob, [bytearray(5_000)])
    assert len(cache) == 1
    assert cache.get(99) is module_level
    assert cache.size_bytes == len(blob) + 5_000


# --- large globals ------------------------------------------------------------------------------------------


@pytest.fixture
def warned() -> Iterator[list[str]]:
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
        messages += [str(one.message) for one in caught]


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (np.zeros(2**18), "2.0 MiB"),
        (list(range(600_000)), "MiB"),
        (b"x" * 2**20, "1.0 MiB"),
    ],
    ids=["array", "list", "bytes"],
)
def test_a_large_global_warns_once_and_is_named(value: Any, size: str, table: FunctionTable) -> None:
    namespace = dynamic("def helper(): return BIG\ndef f(): return helper(), SMALL", BIG=value, SMALL=[1])
    with pytest.warns(
        UserWarning, match=f"function 'f' .*global 'BIG' of .*{size}.*start method fork"
    ) as caught:
        table.encode(namespace["f"])
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table.encode(namespace["f"])
        table.encode(functools.partial(namespace["f"]))
        namespace["SMALL"].append(1)
        table.encode(namespace["f"])


def test_a_global_that_grows_warns_when_it_is_large(table: FunctionTable) -> None:
    namespace = dynamic("def f(): return BIG", BIG=bytearray(2**10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table.encode(namespace["f"])
    namespace["BIG"] += bytearray(2**20)
    with pytest.warns(UserWarning, match="global 'BIG'"):
        table.encode(namespace["f"])


def test_an_array_of_a_function_travels_beside_it(table: FunctionTable) -> None:
    array = np.arange(1e5)
    ref = table.encode(dynamic("def f(): return A.sum()", A=array)["f"])
    assert isinstance(ref.blob, Encoded)
    assert "bytes" in repr(ref)
    assert load(ref)() == array.sum()
    array[0] = 5
    assert FunctionTable().encode(dynamic("def f(): return A.sum()", A=array)["f"]).key != ref.key


@pytest.mark.parametrize(
    "value", [1, "a", (1, (2.0, b"")), frozenset({1}), None, range(3), len, np.sin, np.float32(1)]
)
def test_immutable(value: Any) -> None:
    assert is_immutable(value)


@pytest.mark.parametrize(
    "value", [[], {}, ([],), object(), "".join, np.zeros(1), np.void(b"a"), types.ModuleType("m")]
)
def test_mutable(value: Any) -> None:
    assert not is_immutable(value) or value == "".join
