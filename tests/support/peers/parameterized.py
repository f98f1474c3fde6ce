"""What diffusers' tests use of the package `parameterized`, where that is not installed."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any


class parameterized:
    @staticmethod
    def expand(cases: Iterable[Any], **_: Any) -> Callable[[Callable[..., Any]], None]:
        """Puts a method for each case beside the decorated one, which is dropped."""
        place = sys._getframe(1).f_locals

        def decorate(method: Callable[..., Any]) -> None:
            for i, case in enumerate(cases):
                values = tuple(case) if isinstance(case, (tuple, list)) else (case,)

                def one(self: Any, values: tuple[Any, ...] = values) -> Any:
                    return method(self, *values)

                functools.update_wrapper(one, method)
                del one.__wrapped__  # pytest reads the arguments of what is wrapped
                one.__name__ = f"{method.__name__}_{i}"
                place[one.__name__] = one

        return decorate


def parameterized_class(*_: Any, **__: Any) -> Callable[[type], type]:
    return lambda cls: cls
