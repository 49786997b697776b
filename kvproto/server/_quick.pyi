"""Types of the compiled twin of `kvproto.server.quick.serve_in_python`."""

from kvproto.server.binary import BinarySession

def serve_quickly(
    session: BinarySession, data: bytes, out: list[bytes], limit: int, max_body: int
) -> int: ...
