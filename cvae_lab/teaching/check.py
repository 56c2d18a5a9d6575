"""Tools for the checks of the exercises.

A check calls the student's function. One line is printed: "not yet: ..." with a hint, or "right: ..." with the reason.
A hint is also printed if the student's function raises an exception. Hints do not contain the answer.
"""

import copy
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from torch import Tensor


class NotYet(Exception):  # noqa: N818  # a wrong answer is not an error of the program
    """Exception for a missing or wrong answer; the message is a hint for the student."""


class Outcome(NamedTuple):
    """Result of one check: whether the answer is right, and the line to print."""

    right: bool
    line: str


CHECKS: dict[str, Callable[..., Outcome]] = {}
"""All checks by name, e.g. "check_00_1". Each is a function that returns an `Outcome` and prints nothing."""


def exercise(why: str) -> Callable[[Callable], Callable]:
    """Decorate a function that raises `NotYet` for a wrong answer, to make it a check.

    Args:
        why: reason why the answer is right, printed after "right: ".
    """

    def decorate(test: Callable) -> Callable:
        def outcome(answer: object, *data: object) -> Outcome:
            try:
                test(_Answer(answer), *data)
            except NotYet as hint:
                return Outcome(False, f"not yet: {hint}")
            except Exception as error:
                problem = f"the check cannot use the returned value ({type(error).__name__}); check its type."
                return Outcome(False, f"not yet: {problem}")
            return Outcome(True, f"right: {why}")

        @functools.wraps(test)
        def check(answer: object, *data: object) -> None:
            print(outcome(answer, *data).line)  # noqa: T201

        CHECKS[test.__name__] = outcome
        return check

    return decorate


class _Answer:
    """Wrapper of the student's function that raises `NotYet` if the function raises or returns None.

    Arguments are copied before the call, so the student's function cannot change the data of the check.
    """

    def __init__(self, function: object) -> None:
        if not callable(function):
            raise NotYet("pass the function itself, without parentheses.")
        self.function, self.name = function, getattr(function, "__name__", "the function")

    def __call__(self, *args: object) -> object:
        try:
            value = self.function(*copy.deepcopy(args))
        except Exception as error:
            said = " ".join(str(error).split())
            raise NotYet(f"{self.name} raised {type(error).__name__}: {said[:120]}") from error
        if value is None:
            raise NotYet(f"{self.name} returns None; replace its body with your answer.")
        return value


def expect(condition: object, hint: str) -> None:
    """Raise `NotYet(hint)` unless the condition holds."""
    if not condition:
        raise NotYet(hint)


def close(value: object, expected: object, tolerance: float = 1e-5) -> bool:
    """Return whether two values have the same shape and agree up to a relative and absolute `tolerance`.

    The values are numbers, lists, arrays or tensors. A value with one element is treated as a number.
    """
    a, b = as_array(value), as_array(expected)
    a, b = (part.reshape(()) if part.size == 1 else part for part in (a, b))
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=tolerance, atol=tolerance))


def as_array(value: object) -> np.ndarray:
    """Convert a number, list, array or tensor (with or without gradient) to a float64 array."""
    return np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float64)


def expect_close(
    value: object,
    expected: object,
    hint: str,
    mistakes: Mapping[str, object] | None = None,
    tolerance: float = 1e-5,
) -> None:
    """Raise `NotYet` unless `value` is close to `expected`.

    Args:
        hint: hint for a wrong value that is not a known mistake.
        mistakes: maps the hint for each known mistake to the value that this mistake gives.
    """
    if close(value, expected, tolerance):
        return
    for known, wrong in (mistakes or {}).items():
        expect(not close(value, wrong, tolerance), known)
    raise NotYet(hint)
