"""The names of ``typing`` for modules that every command imports: type checkers see typing's own, and nothing else needs them.

typing takes 4 ms to import, a fifteenth of a short command, of which nothing is left once annotations are text. What modules do
with its names as they run (a base class, a decorator, an alias) has a stand-in here that does next to nothing. A ``Literal`` is
any string, ``Any`` any object: so :mod:`lamella.structs` reads them, whose users take these names from here.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any as Any
    from typing import BinaryIO as BinaryIO
    from typing import ClassVar as ClassVar
    from typing import Concatenate as Concatenate
    from typing import Final as Final
    from typing import Generic as Generic
    from typing import Literal as Literal
    from typing import NewType as NewType
    from typing import NoReturn as NoReturn
    from typing import ParamSpec as ParamSpec
    from typing import Protocol as Protocol
    from typing import Self as Self
    from typing import TextIO as TextIO
    from typing import TypedDict as TypedDict
    from typing import TypeVar as TypeVar
    from typing import Unpack as Unpack
    from typing import cast as cast
    from typing import dataclass_transform as dataclass_transform
    from typing import overload as overload
else:
    Any = BinaryIO = ClassVar = Concatenate = Final = NoReturn = Protocol = Self = TextIO = Unpack = object

    class Generic:
        def __class_getitem__(cls, _):
            return cls

    class Literal:
        def __class_getitem__(cls, _):
            return str

    class TypedDict(dict):
        def __init_subclass__(cls, *, total=True):
            pass

    def NewType(name, kind):
        return kind

    def TypeVar(name):
        return object

    ParamSpec = TypeVar

    def cast(kind, value):
        return value

    def dataclass_transform():
        return lambda kind: kind

    def overload(function):
        return function
