"""What a protocol provides on a transport."""

from __future__ import annotations

from typing import Any

from zope.interface import directlyProvides, implementedBy, providedBy

__all__ = ["provide_what"]

_DECLARATIONS: dict[tuple[type, type], Any] = {}
"""What a protocol of one class provides on a transport of another: declared once for each pair."""


def provide_what(protocol: Any, transport: Any) -> None:
    """Let a protocol provide what its transport provides, as Twisted's own TLS does."""
    provided = providedBy(transport)
    kind = protocol.__class__, transport.__class__
    if provided is not implementedBy(transport.__class__):
        directlyProvides(protocol, provided)
    elif kind in _DECLARATIONS:
        protocol.__provides__ = _DECLARATIONS[kind]
    else:
        directlyProvides(protocol, provided)
        _DECLARATIONS[kind] = protocol.__provides__
