"""Public fakes: what users and our own tests need to try kvproto without a network.

``certificates`` makes authorities and identities of any size in memory,
``contexts`` puts them into OpenSSL contexts, ``transport`` joins two protocols
by an in-memory wire with back-pressure.  Nothing in the package itself imports
this one.
"""

from __future__ import annotations

__all__: list[str] = []
