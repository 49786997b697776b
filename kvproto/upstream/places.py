"""Where keys are: a memory of the ring."""

from __future__ import annotations

from kvproto.base.compiled import compiled

__all__ = ["Places", "PythonPlaces"]


class PythonPlaces:
    """Which server has a key, for keys that were asked for: a memory that may forget any of them.

    Hashing a key for a ring costs more than all else that is done with a request.
    """

    _MOST = 65_536

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}
        self.get = self._places.get

    def put(self, key: bytes, index: int) -> None:
        """Remember a key; others may be forgotten for it.

        Args:
            key: It.
            index: The server's number in the ring; -1 when requests for the key are not ordinary.
        """
        if len(self._places) >= self._MOST:
            self._places.clear()
        self._places[key] = index

    def forget(self, key: bytes) -> None:
        """Forget a key, if it is known."""
        self._places.pop(key, None)


_compiled = compiled("kvproto.upstream._pipe")

Places: type[PythonPlaces] = PythonPlaces if _compiled is None else _compiled.Places
"""What is used."""
