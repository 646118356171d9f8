"""Attributes that are computed when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable

from lamella.typings import Any, Generic, Self, TypeVar, overload

_Value = TypeVar("_Value")


class cached_property(Generic[_Value]):  # noqa: N801 (it stands in for the one of functools)
    """As :func:`functools.cached_property` is from Python 3.12 on: two threads at once may both compute, and nobody waits.

    Before, one lock for all objects of a class was held meanwhile. A thread that had it and waited for the database, and one in a
    transaction that wanted it, waited for each other, and every process that writes for both.
    """

    def __init__(self, compute: Callable[[Any], _Value]) -> None:
        self._compute = compute
        self._name = compute.__name__
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type) -> _Value: ...

    def __get__(self, instance: object | None, owner: type) -> Self | _Value:
        if instance is None:
            return self
        value = self._compute(instance)
        instance.__dict__[self._name] = value  # which from now on comes first: this is no data descriptor
        return value
