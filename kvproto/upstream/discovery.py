r"""The servers of a fleet as one of them names them: ``config get cluster``.

::

    config get cluster\r\n
    CONFIG cluster 0 LENGTH\r\n
    VERSION\n
    HOST|ADDRESS|PORT HOST|ADDRESS|PORT ...\n
    \r\n
    END\r\n

Source: AWS, "Adding Auto Discovery To Your Client Library"; Google Memorystore speaks the same.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from kvproto.errors import RemoteProtocolError
from kvproto.upstream.fleet_options import parse_servers
from kvproto.upstream.ring import FleetServer

__all__ = ["ask_for_servers", "parse_cluster"]

QUESTION = b"config get cluster\r\n"
_LONGEST = 256 * 1024
_END = b"END\r\n"


def parse_cluster(body: bytes) -> tuple[int, tuple[FleetServer, ...]]:
    """Read a configuration: its version, and the servers.

    Raises:
        RemoteProtocolError: It is none.
    """
    lines = body.split(b"\n")
    try:
        version = int(lines[0])
        parts = lines[1].decode("ascii").split()
        named = []
        for part in parts:
            host, address, port = part.split("|")
            where = address or host
            named.append(f"[{where}]:{port}" if ":" in where else f"{where}:{port}")
        return version, parse_servers("config get cluster", ",".join(named))
    except (ValueError, IndexError):
        raise RemoteProtocolError("that is no configuration of a cluster") from None
    except Exception as error:
        raise RemoteProtocolError(str(error)) from None


class _Question(Protocol):
    """Asks once, and reads the answer."""

    def __init__(self) -> None:
        self._read = b""
        self.answer: Deferred[tuple[int, tuple[FleetServer, ...]]] = Deferred(self._cancel)

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.write(QUESTION)

    def dataReceived(self, data: bytes) -> None:
        self._read += data
        if len(self._read) > _LONGEST:
            self._finish(RemoteProtocolError("a configuration without an end"))
        elif self._read.endswith(_END):
            try:
                self._finish(self._parse())
            except RemoteProtocolError as error:
                self._finish(error)
        elif self._read.startswith((b"ERROR", b"CLIENT_ERROR", b"SERVER_ERROR")):
            words = self._read.split(b"\r\n")[0].decode("utf-8", "replace")
            self._finish(RemoteProtocolError(f"it answers {words}"))

    def _parse(self) -> tuple[int, tuple[FleetServer, ...]]:
        head, _, rest = self._read.partition(b"\r\n")
        words = head.split()
        if (
            len(words) != 4
            or words[:2] != [b"CONFIG", b"cluster"]
            or not words[3].isdigit()
            or len(words[3]) > 9
        ):
            raise RemoteProtocolError("it knows no cluster")
        return parse_cluster(rest[: int(words[3][:9])])

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._finish(RemoteProtocolError(f"no answer: {reason.getErrorMessage()}"))

    def _finish(self, result: Any) -> None:
        answer = self.answer
        if not answer.called:
            self._abort()
            if isinstance(result, Exception):
                answer.errback(result)
            else:
                answer.callback(result)

    def _cancel(self, answer: Deferred[Any]) -> None:
        self._abort()

    def _abort(self) -> None:
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()


def ask_for_servers(
    endpoint: IStreamClientEndpoint, clock: IReactorTime, timeout: float
) -> Deferred[tuple[int, tuple[FleetServer, ...]]]:
    """Ask a server for the configuration of its cluster.

    Args:
        endpoint: Where it is.
        clock: For the deadline.
        timeout: Seconds for all of it.

    Returns:
        The configuration's version, and the servers.  Fails with `RemoteProtocolError` or with
        what connecting can fail with; can be cancelled.
    """

    async def ask() -> tuple[int, tuple[FleetServer, ...]]:
        factory = Factory.forProtocol(_Question)
        factory.noisy = False
        question: Any = await endpoint.connect(factory)
        found: tuple[int, tuple[FleetServer, ...]] = await question.answer
        return found

    return Deferred.fromCoroutine(ask()).addTimeout(timeout, clock)
