"""The keys that leave a container's terminal and let it go on: docker's ``--detach-keys``.

Source: docker's reference of ``docker attach``, "Override the detach sequence".
"""

from __future__ import annotations

from lamella.errors import InvalidArgument

_CONTROL = "@abcdefghijklmnopqrstuvwxyz[\\]^_"
"""What stands behind ``ctrl-``, in the order of the bytes from 0 on."""


def parse_detach_keys(text: str) -> bytes:
    r"""Return the bytes that a terminal sends for ``ctrl-p,ctrl-q``, ``ctrl-]`` or ``a,b``; ``""`` for no keys at all.

    A key is one ASCII character, ``DEL``, or ``ctrl-`` with a letter or one of ``@[\]^_``. InvalidArgument.
    """
    keys = bytearray()
    for key in text.split(",") if text else ():
        letter = key.lower().removeprefix("ctrl-")
        if len(key) == 1 and key.isascii():
            keys += key.encode()
        elif key == "DEL":
            keys.append(127)
        elif key[:5].lower() == "ctrl-" and len(letter) == 1 and letter in _CONTROL:
            keys.append(_CONTROL.index(letter))
        else:
            raise InvalidArgument(
                f"the detach keys {text!r} have no key {key!r}",
                hint="Write characters or ctrl-LETTER with commas between, such as ctrl-p,ctrl-q.",
            )
    return bytes(keys)


class DetachKeys:
    """Looks for the keys in what is typed. What may be their beginning is held back until that is known."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""

    def pass_on(self, data: bytes) -> tuple[bytes, bool]:
        """Return what of it goes to the container, and whether the keys were complete; what was typed behind them is dropped."""
        if not self._keys:
            return data, False
        data = self._held + data
        end = data.find(self._keys)
        if end >= 0:
            self._held = b""
            return data[:end], True
        size = min(len(data), len(self._keys) - 1)
        while not self._keys.startswith(data[len(data) - size :]):
            size -= 1
        self._held = data[len(data) - size :]
        return data[: len(data) - size], False
