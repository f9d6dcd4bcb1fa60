"""A script that is run as `__main__`: what it defines is submitted, and it reports what came back.

It is never imported: `__main__` semantics need a fresh interpreter. `make` is defined in front of it. Each
check is a function that returns a value; the report is one JSON object, check name → value or error text.
"""

SOURCE = """
import enum, functools, json, sys, traceback
from collections import namedtuple
from dataclasses import dataclass

ex = make(2)
CHECKS = {}

def check(function):
    CHECKS[function.__name__] = function
    return function

def run(fn, *args, **kwargs):
    return ex.submit(fn, *args, **kwargs).result(15)

LIMIT = 10
TABLE = {"a": 1}

@dataclass(frozen=True)
class Point:
    x: int
    y: int = 0
    def moved(self, by):
        return Point(self.x + by, self.y)

class Colour(enum.Enum):
    RED = 1

class OwnError(Exception):
    def __init__(self, message, code):
        super().__init__(message, code)
        self.code = code

class Adder:
    def __init__(self, start):
        self.start = start
    def __call__(self, value):
        return self.start + value
    def plus(self, value):
        return self.start + value
    @classmethod
    def made(cls, start):
        return cls(start)
    @staticmethod
    def double(value):
        return 2 * value

Pair = namedtuple("Pair", "left right")

def square(value):
    return value * value

@check
def function_defined_after_the_executor():
    return run(square, 7)

@check
def lambda_():
    return run(lambda value: value + 1, 6)

@check
def closure():
    base = 40
    def inner(value):
        return base + value
    return run(inner, 2)

@check
def closure_sees_the_latest_cell():
    count = 0
    def read():
        return count
    seen = []
    for count in range(3):
        seen.append(run(read))
    return seen

@check
def nested_functions_three_deep():
    def outer():
        def middle():
            def inner():
                return "deep"
            return inner()
        return middle()
    return run(outer)

@check
def recursion():
    return run(factorial, 10)

def factorial(n):
    return 1 if n == 0 else n * factorial(n - 1)

@check
def mutual_recursion():
    return run(is_even, 10)

def is_even(n):
    return n == 0 or is_odd(n - 1)

def is_odd(n):
    return n != 0 and is_even(n - 1)

@check
def recursive_closure():
    def fibonacci(n):
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)
    return run(fibonacci, 10)

def below_limit(value):
    return value < LIMIT

@check
def global_changed_between_submits():
    global LIMIT
    first = run(below_limit, 15)
    LIMIT = 20
    return [first, run(below_limit, 15)]

def read_table():
    return TABLE["a"]

@check
def global_mutated_between_submits():
    seen = [run(read_table)]
    TABLE["a"] = 2
    return seen + [run(read_table)]

@check
def helper_redefined_between_submits():
    exec("def helper(): return 1\\ndef caller(): return helper()", globals())
    seen = [run(caller)]
    exec("def helper(): return 2", globals())
    return seen + [run(caller)]

@check
def cell_that_redefines_a_function():
    seen = []
    for version in range(3):
        exec(f"def cell(): return {version}", globals())
        seen += [run(cell), run(cell)]
    return seen

@check
def cell_that_redefines_a_class():
    exec("class Cell:\\n    def value(self): return 1\\ndef make_cell(): return Cell()", globals())
    first = run(make_cell)
    old = Cell
    exec("class Cell:\\n    def value(self): return 2", globals())
    second = run(make_cell)
    return [type(first) is old, first.value(), type(second) is Cell, second.value()]

@check
def default_argument_changed_between_submits():
    def with_default(value=1):
        return value
    seen = [run(with_default)]
    with_default.__defaults__ = (2,)
    return seen + [run(with_default)]

@check
def function_attribute():
    def attributed():
        return attributed.tag
    attributed.tag = "first"
    seen = [run(attributed)]
    attributed.tag = "second"
    return seen + [run(attributed)]

@check
def map_over_a_lambda():
    return list(ex.map(lambda value: value * LIMIT, range(3)))

@check
def partial_of_a_lambda():
    return run(functools.partial(lambda left, right: left - right, 10, right=3))

@check
def bound_method():
    return run(Adder(5).plus, 2)

@check
def class_method():
    return run(Adder.made, 5).start

@check
def static_method():
    return run(Adder.double, 5)

@check
def callable_instance():
    return run(Adder(5), 3)

@check
def class_itself():
    return run(Point, 1, y=2) == Point(1, 2)

@check
def returned_instance_is_of_our_class():
    result = run(lambda: Point(3))
    return [isinstance(result, Point), type(result) is Point, result == Point(3)]

@check
def argument_instance_is_of_the_class_that_the_task_sees():
    return run(lambda point: isinstance(point, Point) and point.moved(1) == Point(2), Point(1))

@check
def instance_through_and_back():
    return run(square_point, Point(3, 4)) == Point(9, 16)

def square_point(point):
    return Point(point.x ** 2, point.y ** 2)

@check
def enum_member_is_itself():
    return run(lambda colour: colour is Colour.RED, Colour.RED), run(lambda: Colour.RED) is Colour.RED

@check
def namedtuple_keeps_its_class():
    return type(run(lambda: Pair(1, 2))) is Pair

@check
def exception_is_of_our_class():
    def explode():
        raise OwnError("own", 7)
    try:
        run(explode)
    except OwnError as error:
        return [error.args, error.code, "explode" in str(error.__cause__)]

@check
def generator_inside():
    def total():
        def numbers():
            yield from range(5)
        return sum(numbers())
    return run(total)

@check
def imports_inside():
    def imported():
        import fractions
        return str(fractions.Fraction(1, 3))
    return run(imported)

@check
def module_of_the_function_and_class():
    return run(lambda: (square.__module__, Point.__module__, Point.__qualname__))

@check
def subclass_and_super():
    class Child(Adder):
        def plus(self, value):
            return super().plus(value) * 10
    return run(Child(1).plus, 2)

@check
def executor_named_in_a_task():
    def nested(count):
        return sum(future.result(15) for future in [ex.submit(square, n) for n in range(count)])
    return run(nested, 5)

if __name__ == "__main__":
    report = {}
    for name, function in CHECKS.items():
        try:
            report[name] = function()
        except BaseException as error:
            report[name] = "".join(traceback.format_exception(error))
    ex.shutdown()
    print(json.dumps(report, default=repr))
"""

EXPECTED: dict[str, object] = {
    "function_defined_after_the_executor": 49,
    "lambda_": 7,
    "closure": 42,
    "closure_sees_the_latest_cell": [0, 1, 2],
    "nested_functions_three_deep": "deep",
    "recursion": 3628800,
    "mutual_recursion": True,
    "recursive_closure": 55,
    "global_changed_between_submits": [False, True],
    "global_mutated_between_submits": [1, 2],
    "helper_redefined_between_submits": [1, 2],
    "cell_that_redefines_a_function": [0, 0, 1, 1, 2, 2],
    "cell_that_redefines_a_class": [True, 1, True, 2],
    "default_argument_changed_between_submits": [1, 2],
    "function_attribute": ["first", "second"],
    "map_over_a_lambda": [0, 20, 40],
    "partial_of_a_lambda": 7,
    "bound_method": 7,
    "class_method": 5,
    "static_method": 10,
    "callable_instance": 8,
    "class_itself": True,
    "returned_instance_is_of_our_class": [True, True, True],
    "argument_instance_is_of_the_class_that_the_task_sees": True,
    "instance_through_and_back": True,
    "enum_member_is_itself": [True, True],
    "namedtuple_keeps_its_class": True,
    "exception_is_of_our_class": [["own", 7], 7, True],
    "generator_inside": 10,
    "imports_inside": "1/3",
    "module_of_the_function_and_class": ["__main__", "__main__", "Point"],
    "subclass_and_super": 30,
    "executor_named_in_a_task": 30,
}
