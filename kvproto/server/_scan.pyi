"""Types of the compiled scan."""

from kvproto.server.session import Dialect, Session

def scan_binary(
    session: Session, dialect: Dialect, data: bytes, out: list[bytes], limit: int
) -> int: ...
def scan_text(
    session: Session, dialect: Dialect, data: bytes, out: list[bytes], limit: int
) -> int: ...
