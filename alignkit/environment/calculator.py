"""Arithmetic as a tool: an expression in, its value as text out. It executes nothing but operators on numbers."""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

LONGEST, BITS = 200, 1024
"""Characters of an expression; bits of a whole number that may come up in it."""
Number = int | float
BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def calculator(expression: str) -> str:
    """Works out an arithmetic expression.

    Args:
        expression: Numbers with + - * / // % ** and parentheses, such as (3 + 4) * 12.
    """
    if not isinstance(expression, str):  # a policy may write anything
        raise ValueError("the expression must be text")
    if len(expression) > LONGEST:
        raise ValueError(f"the expression is longer than {LONGEST} characters")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
        raise ValueError("this is not an arithmetic expression") from error
    value = _value(tree.body)
    return str(value) if isinstance(value, int) else f"{value:.12g}"


def _value(node: ast.expr) -> Number:
    """Raises ValueError for all that is no number and no operator on numbers, and for what grows too large."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in UNARY:
        return UNARY[type(node.op)](_value(node.operand))
    if not isinstance(node, ast.BinOp) or type(node.op) not in BINARY:
        raise ValueError("only numbers, + - * / // % ** and parentheses are allowed")
    left, right = _value(node.left), _value(node.right)
    whole = isinstance(left, int) and isinstance(right, int)
    if isinstance(node.op, ast.Pow) and whole and right * (left.bit_length() - 1) > BITS:  # may take for ever
        raise ValueError("the result is too large")
    try:
        return _bounded(BINARY[type(node.op)](left, right))
    except OverflowError as error:
        raise ValueError("the result is too large") from error
    except ZeroDivisionError as error:
        raise ValueError("division by zero") from error


def _bounded(value: Any) -> Number:
    if isinstance(value, complex):
        raise ValueError("the result is not a real number")
    if value.bit_length() > BITS if isinstance(value, int) else not math.isfinite(value):
        raise ValueError("the result is too large")
    return value
