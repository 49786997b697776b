"""Clients that change counters through services, and know what they were told.

Text over a plain listener: each increment was performed (a number came), was not performed
(``SERVER_ERROR``), or is of unknown fate (the connection was closed).
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence

from tests.integration.service import PATIENCE
from tests.integration.wire_client import HEADER, read_answer

__all__ = ["Counting", "DurableWriting", "TextClient", "write_durably"]

MAJORITY = b"\x11\x01"


class TextClient:
    """A blocking client of the text protocol.

    Args:
        port: Of a listener without TLS.
        timeout: Seconds that an answer may take.
    """

    def __init__(self, port: int, timeout: float = 20.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        """Send requests."""
        self.socket.sendall(data)

    def line(self) -> bytes:
        """Return the next line without its end; nothing when the connection was closed."""
        try:
            return self._file.readline().rstrip(b"\r\n")
        except ConnectionError:
            return b""

    def ask(self, line: bytes) -> bytes:
        """Send one line; return one."""
        self.send(line + b"\r\n")
        return self.line()

    def get(self, key: str) -> bytes | None:
        """Return a value, None where nothing is."""
        self.send(f"get {key}\r\n".encode())
        head = self.line()
        if head == b"END":
            return None
        assert head.startswith(b"VALUE "), head
        value = self._file.read(int(head.split()[3]) + 2)[:-2]
        assert self.line() == b"END"
        return value

    def set(self, key: str, value: bytes, cas: bytes = b"") -> bytes:
        """Store a value; return the line that answers."""
        verb = b"cas" if cas else b"set"
        end = b" " + cas if cas else b""
        self.send(b"%b %b 0 0 %d%b\r\n%b\r\n" % (verb, key.encode(), len(value), end, value))
        return self.line()

    def gets(self, key: str) -> tuple[bytes, bytes]:
        """Return a value and its CAS."""
        self.send(f"gets {key}\r\n".encode())
        head = self.line()
        assert head.startswith(b"VALUE "), head
        words = head.split()
        value = self._file.read(int(words[3]) + 2)[:-2]
        assert self.line() == b"END"
        return value, words[4]

    def close(self) -> None:
        """Close the connection."""
        self._file.close()
        self.socket.close()

    def __enter__(self) -> TextClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Counting:
    """Threads that count, each on its own connection, until they are told to stop.

    Args:
        ports: Listeners, used in turn.
        keys: Counters, used in turn.
        clients: How many threads.
        limit: Increments of each thread at most.

    Attributes:
        done: Increments that were performed, by key.
        unknown: Those of which nobody knows, by key.
        refused: Those that were not performed.
        longest: Seconds that the slowest answer took.
        turns: Answers, or ends of connections, that each thread has seen.
        errors: What else went wrong.
    """

    def __init__(
        self, ports: Sequence[int], keys: Sequence[str], clients: int, limit: int = 10**9
    ) -> None:
        self.done = dict.fromkeys(keys, 0)
        self.unknown = dict.fromkeys(keys, 0)
        self.refused = 0
        self.longest = 0.0
        self.turns = [0] * clients
        self.errors: list[str] = []
        self._keys = keys
        self._limit = limit
        self._lock = threading.Lock()
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._run, args=(ports[number % len(ports)], number))
            for number in range(clients)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, port: int, number: int) -> None:
        client = TextClient(port)
        try:
            for turn in range(self._limit):
                if self._stopping:
                    break
                key = self._keys[(number + turn) % len(self._keys)]
                started = time.monotonic()
                answer = client.ask(b"incr %b 1" % key.encode())
                took = time.monotonic() - started
                with self._lock:
                    self.turns[number] += 1
                    self.longest = max(self.longest, took)
                    if answer.isdigit():
                        self.done[key] += 1
                    elif answer == b"SERVER_ERROR temporary failure":
                        self.refused += 1
                    elif not answer:
                        self.unknown[key] += 1
                    else:
                        self.errors.append(answer.decode())
                        break
                if not answer:
                    client.close()
                    client = TextClient(port)
                elif not answer.isdigit():
                    time.sleep(0.02)
        except Exception as error:
            self.errors.append(repr(error))
        finally:
            client.close()

    @property
    def total(self) -> int:
        """Increments that were performed."""
        return sum(self.done.values())

    def wait_for(self, happened: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Wait until something is true, while counting goes on.

        Raises:
            AssertionError: It was not in time.
        """
        end = time.monotonic() + seconds
        while not happened():
            assert not self.errors, self.errors
            assert time.monotonic() < end, (self.done, self.unknown, self.refused)
            time.sleep(0.02)

    def wait_for_more(self, number: int, seconds: float = PATIENCE) -> None:
        """Wait until so many more increments were performed."""
        wanted = self.total + number
        self.wait_for(lambda: self.total >= wanted, seconds)

    def wait_for_answers(self) -> None:
        """Wait until each thread has the answer to a request that it sends after now."""
        before = list(self.turns)
        self.wait_for(lambda: all(n > b + 1 for n, b in zip(self.turns, before, strict=True)))

    def stop(self) -> None:
        """End, and wait for the threads."""
        self._stopping = True
        for thread in self._threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        """Wait until every thread has done its limit."""
        for thread in self._threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in self._threads)

    def check(self, values: dict[str, int]) -> None:
        """Hold what is there to what clients were told.

        Raises:
            AssertionError: Something acknowledged is missing, or something was counted twice.
        """
        assert not self.errors, self.errors
        for key, value in values.items():
            least = self.done[key]
            assert least <= value <= least + self.unknown[key], (key, value, least, self.unknown)


def write_durably(client: TextClient, key: bytes, value: bytes) -> int:
    """Store a value that a majority must have; return the status."""
    body = MAJORITY + bytes(8) + key + value
    head = HEADER.pack(0x08, 1, len(MAJORITY) << 8 | len(key), 8, 0, 0, len(body), 0, 0)
    client.send(head + body)
    return read_answer(client.socket).status


class DurableWriting:
    """Threads that store growing numbers durably, each under keys of its own, until told to stop.

    Args:
        port: A listener.
        clients: How many threads.
        keys: How many keys each of them has.

    Attributes:
        kept: The last number under each key that was acknowledged.
        tried: The last one that was sent.
        errors: What went wrong.
    """

    def __init__(self, port: int, clients: int, keys: int) -> None:
        self.kept: dict[str, int] = {}
        self.tried: dict[str, int] = {}
        self.errors: list[str] = []
        self.acknowledged = 0
        self._port = port
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._run, args=([f"d{number}.{key}" for key in range(keys)],))
            for number in range(clients)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, keys: Sequence[str]) -> None:
        client = TextClient(self._port)
        number = 0
        try:
            while not self._stopping:
                number += 1
                key = keys[number % len(keys)]
                self.tried[key] = number
                try:
                    status = write_durably(client, key.encode(), b"%d" % number)
                except (EOFError, ConnectionError):
                    client.close()
                    client = TextClient(self._port)
                    continue
                if status == 0:
                    self.kept[key] = number
                    self.acknowledged += 1
                elif status in (0x86, 0xA1, 0xA3):
                    time.sleep(0.02)
                else:
                    self.errors.append(f"status {status:#x}")
                    break
        except Exception as error:
            self.errors.append(repr(error))
        finally:
            client.close()

    def stop(self) -> None:
        """End, and wait for the threads."""
        self._stopping = True
        for thread in self._threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in self._threads)
