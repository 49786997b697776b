"""Where values live elsewhere: a Valkey or Redis server, or a cluster of them.

Owns connections to engines, the layout of documents in them, and the store on top
(`kvproto.upstream.store.EngineStore`).  What operations mean is `kvproto.store`'s.
"""

from __future__ import annotations
