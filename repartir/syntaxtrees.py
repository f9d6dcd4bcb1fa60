"""Source as syntax trees: which of them is a function's or a class's, its form that counts, its text that people read.

Sources come from `linecache`, which has those of notebook cells, too.
"""

from __future__ import annotations

import ast
import contextlib
import linecache
import sys
from collections.abc import Iterator
from types import CodeType
from typing import Any

_NAMELESS = ("<string>", "<stdin>")  # of every `exec`, and of code that dataclasses generate
_SILENT_FIELDS = frozenset({"ctx", "kind", "type_comment", "type_ignores"})


_Spot = tuple[int, str]  # the first line and the name of a function


class Sources:
    """Finds the tree of what runs; each file is read and parsed once.

    A source that has changed since it was loaded is none: what is compiled from it is compared with what runs.
    """

    def __init__(self) -> None:
        self._trees: dict[str, ast.Module | None] = {}
        self._functions: dict[str, dict[_Spot, ast.AST]] = {}  # of each file
        self._codes: dict[str, dict[_Spot, list[CodeType]]] = {}

    def function(self, code: CodeType) -> ast.AST | None:
        """The tree of a function or a lambda."""
        tree = self._tree(code.co_filename)
        if tree is None or not self._is_current(code, tree):
            return None
        if code.co_name == "<lambda>":
            return _lambda_of(code, tree)
        if code.co_filename not in self._functions:
            self._functions[code.co_filename] = {
                (min([node.lineno, *(outer.lineno for outer in node.decorator_list)]), node.name): node
                for node in ast.walk(tree)
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            }
        return self._functions[code.co_filename].get((code.co_firstlineno, code.co_name))

    def class_(self, cls: type, methods: list[CodeType]) -> ast.ClassDef | None:
        """The tree of a class with these methods."""
        home = getattr(sys.modules.get(cls.__module__), "__file__", None)
        for filename in [*(code.co_filename for code in methods), *(_cells() if home is None else [home])]:
            tree = self._tree(filename)
            found = None if tree is None else _class_in(tree, cls.__qualname__.split("."))
            if tree is not None and found is not None:
                here = [code for code in methods if code.co_filename == filename]
                return found if all(self._is_current(code, tree) for code in here) else None
        return None

    def _tree(self, filename: str) -> ast.Module | None:
        if filename not in self._trees:
            self._trees[filename] = None
            if filename not in _NAMELESS:
                linecache.checkcache(filename)
                with contextlib.suppress(SyntaxError, ValueError):  # not Python: a template, say
                    self._trees[filename] = ast.parse("".join(linecache.getlines(filename)))
        return self._trees[filename]

    def _is_current(self, code: CodeType, tree: ast.Module) -> bool:
        if code.co_filename not in self._codes:
            found = self._codes[code.co_filename] = {}
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT  # as notebooks do
            with contextlib.suppress(SyntaxError, ValueError):
                todo = [compile(tree, code.co_filename, "exec", flags, dont_inherit=True)]
                while todo:
                    one = todo.pop()
                    found.setdefault((one.co_firstlineno, one.co_name), []).append(one)
                    todo += [const for const in one.co_consts if isinstance(const, CodeType)]
        same = self._codes[code.co_filename].get((code.co_firstlineno, code.co_name), ())
        return any(_substance(code) == _substance(one) for one in same)


def _substance(code: CodeType) -> tuple[object, ...]:
    """What a function does, without where it stands."""
    consts = [
        _substance(const) if isinstance(const, CodeType) else constant_form(const) for const in code.co_consts
    ]
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, consts


def _cells() -> list[str]:
    """The cells of a notebook, the last first: sources without a file."""
    entries = reversed(list(linecache.cache.items()))
    return [filename for filename, entry in entries if len(entry) == 4 and entry[1] is None]


def constant_form(value: Any) -> str:
    """What Python writes as a constant, and tuples and sets of those."""
    if isinstance(value, frozenset):
        return f"set({sorted(map(constant_form, value))})"
    if isinstance(value, tuple):
        return f"({', '.join(map(constant_form, value))})"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"int {int(value):x}"  # repr refuses thousands of digits
    return f"{type(value).__name__} {value!r}"


def _lambda_of(code: CodeType, tree: ast.AST) -> ast.AST | None:
    """The lambda on its line whose body has all the positions of the bytecode."""
    spans = {
        (line, end_line, column, end_column)
        for line, end_line, column, end_column in code.co_positions()
        if None not in (line, end_line, column, end_column) and end_column
    }
    found = [
        node for node in ast.walk(tree) if isinstance(node, ast.Lambda) and node.lineno == code.co_firstlineno
    ]
    fitting = [
        node
        for node in found
        if all(
            (line, column) >= (node.body.lineno, node.body.col_offset)
            and (end_line, end_column) <= (node.body.end_lineno or 0, node.body.end_col_offset or 0)
            for line, end_line, column, end_column in spans
        )
    ]
    if not fitting or (not spans and len(fitting) > 1):
        return None
    return fitting[-1]  # the innermost of nested ones


def _class_in(tree: ast.AST, path: list[str]) -> ast.ClassDef | None:
    """The last class or function of each name on the path, as later definitions replace earlier ones."""
    node: ast.AST = tree
    for name in path:
        if name == "<locals>":
            continue
        found = [
            child
            for child in _own_statements(node)
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and child.name == name
        ]
        if not found:
            return None
        node = found[-1]
    return node if isinstance(node, ast.ClassDef) else None


def _own_statements(node: ast.AST) -> Iterator[ast.AST]:
    """What stands below ``node``, but not in a function or class below it."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _own_statements(child)


def default_nodes(node: ast.AST | None) -> list[ast.expr]:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return []
    return [*node.args.defaults, *filter(None, node.args.kw_defaults)]


def loaded_names(node: ast.AST) -> dict[str, None]:
    return {child.id: None for child in ast.walk(node) if isinstance(child, ast.Name)}


def class_names(node: ast.ClassDef) -> dict[str, None]:
    """The names that run when the class is made: bases, decorators, defaults, values of attributes."""
    names: dict[str, None] = {}
    for child in ast.walk(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            for outer in (*child.decorator_list, *default_nodes(child)):
                names |= loaded_names(outer)
    for child in _own_statements(node):
        if isinstance(child, ast.Name):
            names[child.id] = None
    return names


def _has_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and bool(node.body)
        and isinstance(node.body[0], ast.Expr)
        and isinstance(node.body[0].value, ast.Constant)
        and isinstance(node.body[0].value.value, str)
    )


def form_of(node: Any) -> str:
    """A syntax tree as text that is the same in every version of Python."""
    if isinstance(node, list):
        return f"[{','.join(map(form_of, node))}]"
    if isinstance(node, ast.Constant):
        return f"Constant({constant_form(node.value)})"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name, value in ast.iter_fields(node):
        if name == "body" and _has_docstring(node):
            value = value[1:]
        if isinstance(node, ast.JoinedStr):  # some versions have empty constants between the parts
            value = [part for part in value if not (isinstance(part, ast.Constant) and part.value == "")]
        if name not in _SILENT_FIELDS and value is not None and value != []:
            fields.append(f"{name}={form_of(value)}")
    return f"{type(node).__name__}({','.join(fields)})"


class _WithoutDocstrings(ast.NodeTransformer):
    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if _has_docstring(node):
            assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            node.body = node.body[1:] or [ast.Pass()]
        return node


def text_of(node: ast.AST) -> str:
    """Source as people write it, without comments and docstrings."""
    return ast.unparse(_WithoutDocstrings().visit(ast.parse(ast.unparse(node))))
