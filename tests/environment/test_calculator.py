"""The calculator: right values, and one line for all that is no arithmetic or too large. Nothing is executed."""

import time
from fractions import Fraction
from random import Random

import pytest

from alignkit.environment.calculator import calculator


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1+1", "2"), (" 2 + 3*4 ", "14"), ("(2+3)*4", "20"), ("-3 + +5", "2"), ("7/2", "3.5"), ("6/3", "2"),
        ("7//2", "3"), ("-7//2", "-4"), ("7%3", "1"), ("-7 % 3", "2"), ("2**10", "1024"), ("2**-1", "0.5"),
        ("-2**2", "-4"), ("2**3**2", "512"), ("0.1+0.2", "0.3"), ("1e3*2", "2000"), ("1/3", "0.333333333333"),
        ("9**0.5", "3"), ("12345678901234567890*10", "123456789012345678900"), ("0**0", "1"),
        ("2**1000 // 2**998", "4"),
    ],
)  # fmt: skip
def test_values(expression: str, value: str) -> None:
    assert calculator(expression) == value


def test_whole_numbers_are_exact() -> None:
    """Random expressions, against fractions worked out beside them."""
    random = Random(0)

    def draw(depth: int) -> tuple[str, Fraction]:
        if depth == 0:
            n = random.randint(0, 999)
            return str(n), Fraction(n)
        (a, x), (b, y) = draw(depth - 1), draw(random.randrange(depth))
        name, value = random.choice([("+", x + y), ("-", x - y), ("*", x * y)])
        return f"({a} {name} {b})", value

    for _ in range(200):
        expression, value = draw(4)
        if len(expression) <= 200:
            assert calculator(expression) == str(value)


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("1/0", "division by zero"), ("1%0", "division by zero"), ("1//0.0", "division by zero"),
        ("0**-1", "division by zero"), ("9**9**9", "too large"), ("10**400", "too large"), ("2.0**5000", "too large"),
        ("1e308*10", "too large"), ("1e999", "too large"), ("10**300/10**-300", "too large"),
        ("(-8)**0.5", "not a real number"), ("1+", "not an arithmetic"), ("", "not an arithmetic"),
        ("1 2", "not an arithmetic"), ("x=1", "not an arithmetic"), ("\0", "not an arithmetic"),
        ("(" * 99 + "1" + ")" * 99, ""),
        ("x", "only numbers"), ("abs(-1)", "only numbers"), ("__import__('os').system('true')", "only numbers"),
        ("().__class__", "only numbers"), ("'a'*9", "only numbers"), ("True+1", "only numbers"),
        ("[1][0]", "only numbers"), ("1<2", "only numbers"), ("1 if 1 else 2", "only numbers"), ("1j", "only numbers"),
        ("1<<99999", "only numbers"), ("~1", "only numbers"), ("lambda: 1", "only numbers"), ("1,2", "only numbers"),
        ("1+" * 100 + "1", "longer than 200"),
    ],
)  # fmt: skip
def test_refusals(expression: str, fault: str) -> None:
    began = time.perf_counter()
    if fault:
        with pytest.raises(ValueError, match=fault):
            calculator(expression)
    else:
        assert calculator(expression) == "1"
    assert time.perf_counter() - began < 1
