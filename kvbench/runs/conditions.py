"""Conditions on records, as in ``bits<4 and kld<0.01``: comparisons of fields and numbers or texts, joined by words.

The syntax is Python's, of which nothing but comparisons, ``and``, ``or``, ``not`` and parentheses is taken.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kvbench.errors import KvbenchError, unknown
from kvbench.runs.fields import Value

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda part, whole: part in whole,
    ast.NotIn: lambda part, whole: part not in whole,
}


class Condition:
    """A condition on rows that have the fields ``known``.

    A comparison with a field that a row does not have is false, whichever it is.

    Raises:
        KvbenchError: it cannot be read, or names a field that no row has.
    """

    def __init__(self, text: str, known: Iterable[str]) -> None:
        self._text, self._known = text, {*known}
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self._unreadable() from error
        self._check(self._tree)

    def holds(self, row: Mapping[str, Value]) -> bool:
        """Whether it does for ``row``.

        Raises:
            KvbenchError: a text is compared with a number.
        """
        return bool(self._value(self._tree, row))

    def _check(self, node: ast.expr) -> None:
        if isinstance(node, ast.BoolOp):
            for part in node.values:
                self._check(part)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self._check(node.operand)
        elif isinstance(node, ast.Compare):
            if any(type(each) not in _COMPARE for each in node.ops):
                raise self._unreadable()
            for side in (node.left, *node.comparators):
                self._check_side(side)
        else:
            raise self._unreadable()

    def _check_side(self, node: ast.expr) -> None:
        name = _name(node)
        if name is not None:
            if name not in self._known:
                raise unknown("field", name, sorted(self._known))
        elif _constant(node) is None:
            raise self._unreadable()

    def _value(self, node: ast.expr, row: Mapping[str, Value]) -> bool:
        if isinstance(node, ast.BoolOp):
            decide = all if isinstance(node.op, ast.And) else any
            return decide(self._value(part, row) for part in node.values)
        if isinstance(node, ast.UnaryOp):
            return not self._value(node.operand, row)
        assert isinstance(node, ast.Compare)
        sides = [_side(each, row) for each in (node.left, *node.comparators)]
        if any(side is None for side in sides):
            return False
        try:
            pairs = zip(sides, node.ops, sides[1:], strict=False)
            return all(_COMPARE[type(compare)](left, right) for left, compare, right in pairs)
        except TypeError as error:
            raise KvbenchError(f"{self._text!r} compares a text with a number") from error

    def _unreadable(self) -> KvbenchError:
        return KvbenchError(
            f"cannot read the condition {self._text!r}; write comparisons of fields with numbers or quoted texts, as "
            "in bits<4 and kld<0.01, or 'int' in compressor"
        )


def _name(node: ast.expr) -> str | None:
    """The field that a side of a comparison names."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = _name(node.value)
        return None if before is None else f"{before}.{node.attr}"
    return None


def _constant(node: ast.expr) -> Value:
    """The number or text that a side of a comparison is."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _constant(node.operand)
        return -number if isinstance(number, int | float) else None
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float) else None


def _side(node: ast.expr, row: Mapping[str, Value]) -> Value:
    name = _name(node)
    return _constant(node) if name is None else row.get(name)
