"""The identity of classes that `__main__` or a function defines, between a client and a worker."""

from __future__ import annotations

import pytest

from tests.unit.peer import run_main

DEFINITIONS = """
import abc, collections, dataclasses, enum, gc, sys, typing, weakref

@dataclasses.dataclass
class Point:
    x: int
    y: "int" = 0

class Colour(enum.Enum):
    RED = 1
    BLUE = 2
    AZURE = 2

class Planet(enum.Enum):
    EARTH = (5.9, 6.3)
    MARS = (0.6, 3.4)
    TERRA = EARTH
    def __init__(self, mass, radius):
        self.mass, self.radius = mass, radius

class Level(enum.IntEnum):
    LOW = enum.auto()
    HIGH = enum.auto()

class Perm(enum.Flag):
    R = 1
    W = 2
    RW = 3

class Named(typing.NamedTuple):
    a: int
    b: str = "b"

Plain = collections.namedtuple("Plain", "u v")

class Slotted:
    __slots__ = ("a", "__b", "__weakref__")
    def __init__(self, a): self.a = self.__b = a

class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...

class Square(Shape):
    def area(self): return 4

T = typing.TypeVar("T")
class Box(typing.Generic[T]):
    def __init__(self, held): self.held = held

@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    __private: int
"""


FORKED_BEFORE = "peer = Peer()" + DEFINITIONS
FRESH = "peer = Peer(fork=False)" + DEFINITIONS
FORKED_AFTER = (
    DEFINITIONS + "from repartir.codec import snapshot_inherited\npeer = Peer(snapshot_inherited())\n"
)


@pytest.mark.parametrize(
    "start",
    [FORKED_BEFORE, FRESH, FORKED_AFTER],
    ids=["forked before", "fresh interpreter", "forked after the definitions"],
)
def test_instances_come_back_as_the_clients_classes(start: str) -> None:
    run_main(
        start
        + """
def sources():
    return [Point(1, 2), Named(1), Plain(1, 2), Slotted(3), Square(), Box(4), Record(7)]
def same(value): return value
before = dict(Point.__dict__)
classes = [Point, Named, Plain, Slotted, Square, Box, Record]
there = peer.run(sources)
for _ in range(3):
    there = peer.run(same, there)
    assert [type(value) for value in there] == classes
assert there[0] == Point(1, 2) and there[1] == Named(1) and there[2] == Plain(1, 2)
assert there[3].a == 3 and there[4].area() == 4 and there[5].held == 4 and there[6] == Record(7)
assert {name: value for name, value in Point.__dict__.items() if name != "__slotnames__"} == before

assert peer.run(lambda: classes) == classes
members = [Colour.RED, Colour.AZURE, Perm.RW, Perm.R | Perm.W, Planet.TERRA, Level.HIGH]
assert all(map(lambda a, b: a is b, peer.run(lambda: members), members))
assert all(map(lambda a, b: a is b, peer.run(same, members), members))
assert peer.run(lambda given: given is Colour.RED, Colour.RED)
def look_up():
    names = [*Colour.__members__, *Perm.__members__, *Planet.__members__]
    return names, Colour["AZURE"].name, Planet.EARTH.mass, Level.HIGH + 1, Perm.RW & Perm.W
assert peer.run(look_up) == look_up()
assert peer.run(lambda given: isinstance(given, Point), Point(1))
assert peer.run(lambda given: isinstance(given, Shape), Square())
"""
    )


def test_subclasses_made_in_a_worker_keep_their_base_and_identity() -> None:
    run_main(
        "peer = Peer()"
        + DEFINITIONS
        + """
def make():
    class Sub(Point):
        def shout(self): return "!" * self.x
    return Sub(3)
sub = peer.run(make)
assert isinstance(sub, Point) and sub.shout() == "!!!" and sub == type(sub)(3)
again = peer.run(lambda given: given, sub)
assert type(again) is type(sub)
other = Peer()
assert type(other.run(lambda given: given, sub)) is type(sub)
"""
    )


def test_a_redefined_class_is_another_class() -> None:
    run_main(
        "peer = Peer()"
        + DEFINITIONS
        + """
def make(): return Point(1)
assert type(peer.run(make)) is Point
Old, old = Point, Point(1)
@dataclasses.dataclass
class Point:
    z: int
assert type(peer.run(make)) is Point and peer.run(make).z == 1
assert type(peer.run(lambda given: given, old)) is Old
assert not peer.run(lambda given: isinstance(given, Point), old)
assert peer.run(lambda given: isinstance(given, Old), old)
"""
    )


def test_changes_to_a_class_reach_workers_and_never_come_back() -> None:
    run_main(
        "peer = Peer()"
        + DEFINITIONS
        + """
def read(): return Point.factor
def read_too(): return Point.factor + 0
def read_method(): return Point(3).double()
Point.factor = 1
assert peer.run(read) == 1
Point.factor = 2
assert peer.run(read_too) == 2
Point.factor = 1                       # as before, though the worker has seen another value meanwhile
assert peer.run(read) == 1
Point.factor = 5
assert peer.run(lambda given: given.factor, Point(1)) == 5
Point.factor = 1
assert peer.run(read) == 1
assert peer.run(lambda given: given.factor, Point(1)) == 1
Point.double = lambda self: 2 * self.x
assert peer.run(read_method) == 6
del Point.factor
assert peer.run(lambda: hasattr(Point, "factor")) is False
def vandal():
    Point.x_factor = 9
    Point.__init__ = None
    return Point
assert peer.run(vandal) is Point
assert not hasattr(Point, "x_factor") and Point(1).x == 1
"""
    )


def test_a_class_that_counts_its_instances() -> None:
    run_main(
        """
peer = Peer()
class Counted:
    made = 0
    def __init__(self): Counted.made += 1
def is_one(given): return isinstance(given, Counted)
for _ in range(5):
    assert peer.run(is_one, Counted())
assert Counted.made == 5
"""
    )


def test_classes_that_refer_to_each_other() -> None:
    run_main(
        """
peer = Peer()
class A:
    def other(self): return B()
    def me(self): return __class__
class B:
    partner = A()
    def other(self): return A()
A.partner = B.partner
B.itself = B
def swap(given): return given.other()
assert type(peer.run(swap, A())) is B and type(peer.run(swap, B())) is A
assert peer.run(lambda: A().me() is A and type(B.partner) is A and B.itself is B)
"""
    )


def test_a_class_that_died_in_the_client_is_made_again_from_its_definition() -> None:
    run_main(
        """
import gc, sys, weakref
peer = Peer()
def make():
    class Local:
        value = 4
    return Local
Local = make()
gone = weakref.ref(Local)
def keep(given): sys.kept = given
def kept(): return sys.kept
peer.run(keep, Local())
assert type(peer.run(kept)) is Local
del Local
gc.collect()
assert gone() is None, gc.get_referrers(gone())
again = peer.run(kept)
assert again.value == 4 and type(peer.run(kept)) is type(again)
"""
    )


def test_a_definition_too_large_to_send_back_needs_the_clients_class() -> None:
    run_main(
        """
import gc, sys
from repartir.outcome import Error
peer = Peer()
def make():
    class Heavy:
        table = "x" * 100_000
    return Heavy
Heavy = make()
def keep(given): sys.kept = given
def kept(): return sys.kept
peer.run(keep, Heavy())
assert type(peer.run(kept)) is Heavy
del Heavy
gc.collect()
outcome = peer.outcome(kept)
assert isinstance(outcome, Error), outcome
assert "'make.<locals>.Heavy' no longer exists" in str(outcome.exception), outcome
"""
    )


def test_instances_that_a_worker_inherited_are_the_clients_too() -> None:
    run_main(
        """
import types, sys
from repartir.codec import snapshot_inherited
class Point:
    def __init__(self, x): self.x = x
registry = types.ModuleType("registry")
sys.modules["registry"] = registry
registry.points = [Point(1)]
peer = Peer(snapshot_inherited())
def first():
    import registry
    return registry.points[0]
assert type(peer.run(first)) is Point
assert peer.run(lambda given: type(given) is type(first()), Point(2))
"""
    )


def test_definitions_are_not_unpickled_twice() -> None:
    run_main(
        """
import sys
peer = Peer()
class Trap:
    def __reduce__(self): return eval, ("setattr(sys, 'loads', getattr(sys, 'loads', 0) + 1)", {"sys": sys})
class Point:
    trap = [Trap()]
def loads(given): return sys.loads
assert [peer.run(loads, Point()) for _ in range(3)] == [1, 1, 1]
"""
    )
