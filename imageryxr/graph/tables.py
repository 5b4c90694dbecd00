"""Expressions that hold a table, such as annotations, of which a block needs only a few rows."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any

from imageryxr.core.bbox import IndexBox
from imageryxr.graph.expr import Expr


class TableExpr(Expr):
    """An expression with a table; the values of a box depend only on some of its rows."""

    @abstractmethod
    def restrict(self, box: IndexBox) -> TableExpr:
        """Return the expression with only the rows that a box needs, in which all values are the same."""


def has_tables(expr: Expr) -> bool:
    """Return whether an expression contains a table, which should not be sent with every block."""
    return isinstance(expr, TableExpr) or any(has_tables(child) for child in expr.inputs)


def restrict_tables(expr: Expr, box: IndexBox) -> Expr:
    """Return an expression whose tables have only the rows that a box needs."""
    boxes: dict[Expr, IndexBox] = {}
    _collect(expr, box, boxes)
    made: dict[Expr, Expr] = {}

    def rebuild(node: Expr) -> Expr:
        if node not in made:
            parts = {name: _rebuilt(value) for name, value in vars(node).items()}
            children = {name: part for name, part in parts.items() if part is not vars(node)[name]}
            new: Any = replace(node, **children) if children else node  # type: ignore[type-var]
            made[node] = new.restrict(boxes.get(node, _EMPTY)) if isinstance(node, TableExpr) else new
        return made[node]

    def _rebuilt(value: Any) -> Any:
        if isinstance(value, Expr):
            return rebuild(value)
        if isinstance(value, tuple) and value and isinstance(value[0], Expr):
            parts = tuple(map(rebuild, value))
            return value if all(a is b for a, b in zip(parts, value, strict=True)) else parts
        return value

    return rebuild(expr)


_EMPTY = IndexBox((0, 0, 0), (0, 0, 0))


def _collect(expr: Expr, box: IndexBox, found: dict[Expr, IndexBox]) -> None:
    """Add the box that is needed of each expression with a table."""
    box = box.clip(expr.bounds)
    if not box.voxels or not has_tables(expr):
        return
    if isinstance(expr, TableExpr):
        found[expr] = found[expr].hull(box) if expr in found else box
    for piece in expr.pieces(box):
        for child, need in zip(expr.inputs, expr.needs(piece), strict=True):
            _collect(child, need, found)
