"""Binary requests as lines of meta commands, and their answers as frames."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import RemoteProtocolError
from kvproto.wire.binary import ResponseDecoder, encode_request
from kvproto.wire.constants import Opcode, Status
from kvproto.wire.frames import Response
from kvproto.wire.meta_frames import META, OPAQUE, MetaTranslation
from tests.examples import examples

Op, S = Opcode, Status

STORE = (5).to_bytes(4) + (60).to_bytes(4)
COUNT = (3).to_bytes(8) + (7).to_bytes(8) + (60).to_bytes(4)
UNMADE = COUNT[:16] + b"\xff\xff\xff\xff"

LINES: tuple[tuple[Opcode, dict[str, Any], bytes], ...] = (
    (Op.GET, {}, b"mg k f c v O9\r\n"),
    (Op.GETK, {}, b"mg k f c v O9\r\n"),
    (Op.GAT, {"extras": STORE[4:]}, b"mg k f c v T60 O9\r\n"),
    (Op.TOUCH, {"extras": STORE[4:]}, b"mg k c T60 O9\r\n"),
    (Op.TOUCH, {"extras": b"\xff\0\0\0"}, b"mg k c T2147483647 O9\r\n"),
    (Op.SET, {"extras": STORE, "value": b"ab"}, b"ms k 2 c F5 T60 O9\r\nab\r\n"),
    (Op.SET, {"extras": STORE, "cas": 4}, b"ms k 0 c F5 T60 C4 O9\r\n\r\n"),
    (Op.ADD, {"extras": STORE}, b"ms k 0 c F5 T60 ME O9\r\n\r\n"),
    (Op.ADD, {"extras": STORE, "cas": 4}, b"ms k 0 c F5 T60 C4 O9\r\n\r\n"),
    (Op.REPLACE, {"extras": STORE}, b"ms k 0 c F5 T60 MR O9\r\n\r\n"),
    (Op.REPLACE, {"extras": STORE, "cas": 4}, b"ms k 0 c F5 T60 C4 O9\r\n\r\n"),
    (Op.APPEND, {"value": b"\r\n"}, b"ms k 2 c MA O9\r\n\r\n\r\n"),
    (Op.APPEND, {"cas": 4}, b"ms k 0 c MA C4 O9\r\n\r\n"),
    (Op.PREPEND, {}, b"ms k 0 c MP O9\r\n\r\n"),
    (Op.DELETE, {}, b"md k O9\r\n"),
    (Op.DELETE, {"cas": 4}, b"md k C4 O9\r\n"),
    (Op.INCREMENT, {"extras": COUNT}, b"ma k v c D3 J7 N60 O9\r\n"),
    (Op.INCREMENT, {"extras": UNMADE, "cas": 4}, b"ma k v c D3 C4 O9\r\n"),
    (Op.DECREMENT, {"extras": UNMADE}, b"ma k v c D3 MD O9\r\n"),
    (Op.GET, {"key": b"a b"}, b"mg YSBi f c v b O9\r\n"),
    (Op.SET, {"key": b"\0", "extras": STORE}, b"ms AA== 0 c F5 T60 b O9\r\n\r\n"),
    (Op.DELETE, {"key": b"\x7f"}, b"md fw== b O9\r\n"),
    (Op.INCREMENT, {"key": b"\n", "extras": UNMADE}, b"ma Cg== v c D3 b O9\r\n"),
    (Op.GET, {"key": "\u00e9".encode()}, b"mg \xc3\xa9 f c v O9\r\n"),
    (Op.GET, {"key": b"x" * 250}, b"mg " + b"x" * 250 + b" f c v O9\r\n"),
    (Op.GET, {"key": b" " * 186}, b"mg " + b"ICAg" * 62 + b" f c v b O9\r\n"),
    (Op.GET, {"key": b" " * 187}, b"mn\r\n"),
    (Op.FLUSH, {"key": b""}, b"flush_all\r\n"),
    (Op.FLUSH, {"key": b"", "extras": bytes(3) + b"\5"}, b"flush_all 5\r\n"),
    (Op.STAT, {"key": b""}, b"stats\r\n"),
    (Op.STAT, {"key": b"items"}, b"stats items\r\n"),
    (Op.NOOP, {"key": b""}, b"mn\r\n"),
    (Op.GET_LOCKED, {"extras": bytes(4)}, b"mn\r\n"),
)
"""Each request, and its line."""

TOO_LARGE = b"SERVER_ERROR object too large for cache\r\n"
FULL = b"SERVER_ERROR out of memory storing object\r\n"
BUSY = b"SERVER_ERROR busy\r\n"
BAD = b"CLIENT_ERROR bad command line format\r\n"
NO_NUMBER = b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"
STORING = (Op.SET, Op.ADD, Op.REPLACE, Op.APPEND, Op.PREPEND)
READING = (Op.GET, Op.GETK, Op.GAT)

ANSWERS: tuple[tuple[tuple[Opcode, ...], bytes, int, bytes, int], ...] = (
    (READING, b"VA 2 f5 c44 O9\r\n\r\n\r\n", S.SUCCESS, b"\r\n", 44),
    (READING, b"VA 0 f0 c44 O9\r\n\r\n", S.SUCCESS, b"", 44),
    (READING, b"EN\r\n", S.NOT_FOUND, b"", 0),
    (READING, b"EN O9\r\n", S.NOT_FOUND, b"", 0),
    ((*READING, Op.TOUCH), BAD, S.INVALID, b"", 0),
    (READING, BUSY, S.TEMPORARY_FAILURE, b"", 0),
    ((Op.TOUCH,), b"HD c44 O9\r\n", S.SUCCESS, b"", 44),
    ((Op.TOUCH,), b"EN\r\n", S.NOT_FOUND, b"", 0),
    (STORING, b"HD c44 O9\r\n", S.SUCCESS, b"", 44),
    (STORING, b"EX c0 O9\r\n", S.EXISTS, b"", 0),
    (STORING, b"NF c0 O9\r\n", S.NOT_FOUND, b"", 0),
    ((Op.SET, Op.APPEND, Op.PREPEND), b"NS c0 O9\r\n", S.NOT_STORED, b"", 0),
    ((Op.ADD,), b"NS c0 O9\r\n", S.EXISTS, b"", 0),
    ((Op.REPLACE,), b"NS c0 O9\r\n", S.NOT_FOUND, b"", 0),
    (STORING, TOO_LARGE, S.TOO_BIG, b"", 0),
    (STORING, FULL, S.NO_MEMORY, b"", 0),
    (STORING, BUSY, S.INTERNAL, b"", 0),
    (STORING, BAD, S.INVALID, b"", 0),
    ((Op.DELETE,), b"HD O9\r\n", S.SUCCESS, b"", 0),
    ((Op.DELETE,), b"NF O9\r\n", S.NOT_FOUND, b"", 0),
    ((Op.DELETE,), b"EX O9\r\n", S.EXISTS, b"", 0),
    ((Op.INCREMENT, Op.DECREMENT), b"VA 2 c44 O9\r\n17\r\n", S.SUCCESS, b"\0" * 7 + b"\x11", 44),
    ((Op.INCREMENT, Op.DECREMENT), b"NF O9\r\n", S.NOT_FOUND, b"", 0),
    ((Op.INCREMENT, Op.DECREMENT), b"NS O9\r\n", S.NOT_STORED, b"", 0),
    ((Op.INCREMENT, Op.DECREMENT), b"EX O9\r\n", S.EXISTS, b"", 0),
    ((Op.INCREMENT, Op.DECREMENT), NO_NUMBER, S.NOT_A_NUMBER, b"", 0),
    ((Op.FLUSH,), b"OK\r\n", S.SUCCESS, b"", 0),
    ((Op.STAT,), b"END\r\n", S.SUCCESS, b"", 0),
    ((Op.NOOP,), b"MN\r\n", S.SUCCESS, b"", 0),
    ((Op.GET_LOCKED,), b"MN\r\n", S.UNKNOWN_COMMAND, b"", 0),
)
"""For each request: an answer, and the status, value and CAS that it means."""

CODES = (b"VA 1 O9\r\n1", b"HD", b"EN", b"NF", b"NS", b"EX", b"OK", b"MN", b"END", b"ERROR", b"?")


def request(opcode: int, **fields: Any) -> bytes:
    """Return a request with an opaque of 9."""
    fields.setdefault("key", b"k")
    return encode_request(opcode, opaque=9, **fields)


def translated(opcode: int, answer: bytes) -> list[Any]:
    """Return the frames that an answer becomes."""
    translation = MetaTranslation()
    translation.requests(request(opcode, extras=bytes(20)))
    return ResponseDecoder().feed(translation.replies(answer))


class RequestTests(SynchronousTestCase):
    """Frames to lines."""

    def test_lines(self) -> None:
        """Each request has its line, alone and among others."""
        for opcode, fields, line in LINES:
            self.assertEqual(MetaTranslation().requests(request(opcode, **fields)), line)
        together = b"".join(request(opcode, **fields) for opcode, fields, _ in LINES)
        self.assertEqual(
            MetaTranslation().requests(together), b"".join(line for _, _, line in LINES)
        )


class AnswerTests(SynchronousTestCase):
    """Lines to frames."""

    def test_answers(self) -> None:
        """Each answer to each request is the frame that a binary server would send."""
        for opcodes, answer, status, value, cas in ANSWERS:
            for opcode in opcodes:
                (frame,) = translated(opcode, answer)
                self.assertEqual((frame.opcode, frame.opaque), (opcode, 9))
                self.assertEqual((frame.status, frame.cas), (status, cas), (opcode, answer))
                if not status:
                    self.assertEqual(frame.value, value)
                    flags = answer.startswith((b"VA 2 f", b"VA 0 f"))
                    self.assertEqual(len(frame.extras), 4 if flags else 0)
                if opcode == Op.GETK and status in {S.SUCCESS, S.NOT_FOUND}:
                    self.assertEqual(frame.key, b"k")

    def test_what_makes_no_sense(self) -> None:
        """A code that does not belong to a request ends the connection, for every pair."""
        sensible = {
            (opcode, answer.split()[0]) for opcodes, answer, *_ in ANSWERS for opcode in opcodes
        }
        for opcode in {opcode for opcodes, *_ in ANSWERS for opcode in opcodes}:
            for code in CODES:
                if (opcode, code.split()[0]) not in sensible:
                    self.assertRaises(RemoteProtocolError, translated, opcode, code + b"\r\n")

    def test_faults(self) -> None:
        """What no server says is refused, not handed to a client."""
        for opcode, answer in (
            (Op.GET, b"VA 1 f0 c1 O8\r\nx\r\n"),  # to another request
            (Op.GET, b"VA 1 f0 c1 O9\r\nxyz"),  # a value that does not end
            (Op.GET, b"VA x f0 c1 O9\r\nx\r\n"),
            (Op.GET, b"VA -1 f0 c1 O9\r\nx\r\n"),
            (Op.GET, b"VA 2000000000 f0 c1 O9\r\n"),
            (Op.GET, b"VA 1 f4294967296 c1 O9\r\nx\r\n"),
            (Op.GET, b"VA 1 f0 c18446744073709551616 O9\r\nx\r\n"),
            (Op.SET, b"HD cx O9\r\n"),
            (Op.INCREMENT, b"VA 1 c1 O9\r\nx\r\n"),
            (Op.INCREMENT, b"VA 20 c1 O9\r\n18446744073709551616\r\n"),
            (Op.GET, b"x" * 10_000),
            (Op.GET, b"EN\r\nEN\r\n"),  # one too many
        ):
            self.assertRaises(RemoteProtocolError, translated, opcode, answer)

    def test_refused_here(self) -> None:
        """What cannot be told is refused in its turn."""
        translation = MetaTranslation()
        data = request(Op.GET) + request(Op.GET, key=bytes(200)) + request(Op.GET)
        self.assertEqual(translation.requests(data).count(b"mn\r\n"), 1)
        frames = ResponseDecoder().feed(translation.replies(b"EN\r\nMN\r\nEN\r\n"))
        found = [frame.status for frame in frames if isinstance(frame, Response)]
        self.assertEqual(found, [S.NOT_FOUND, S.INVALID, S.NOT_FOUND])

    def test_statistics(self) -> None:
        """Each line of statistics is a frame; one without a name ends them."""
        found = translated(Op.STAT, b"STAT pid 12\r\nSTAT version 1.6 x\r\nSTAT e \r\nEND\r\n")
        self.assertEqual(
            [(frame.key, frame.value) for frame in found],
            [(b"pid", b"12"), (b"version", b"1.6 x"), (b"e", b""), (b"", b"")],
        )

    @given(st.data())
    @examples(200)
    def test_cut_anywhere(self, data: st.DataObject) -> None:
        """However answers come in, the frames are the same."""
        chosen = data.draw(st.lists(st.sampled_from(ANSWERS), max_size=12))
        pairs = [(data.draw(st.sampled_from(opcodes)), answer) for opcodes, answer, *_ in chosen]
        asked = b"".join(request(opcode, extras=bytes(20)) for opcode, _ in pairs)
        stream = b"".join(answer for _, answer in pairs)
        whole, cut = MetaTranslation(), MetaTranslation()
        self.assertEqual(whole.requests(asked), cut.requests(asked))
        wanted, found = whole.replies(stream), b""
        while stream:
            size = data.draw(st.integers(1, len(stream)))
            found += cut.replies(stream[:size])
            stream = stream[size:]
        self.assertEqual(found, wanted)


class PassedOnTests(SynchronousTestCase):
    """Frames that are lines of meta commands already."""

    def ask(self, line: bytes) -> MetaTranslation:
        """Return a translation that has been asked a line with opaque 9."""
        translation = MetaTranslation()
        frame = encode_request(META, key=b"k", value=line, opaque=9)
        self.told = translation.requests(frame)
        return translation

    def test_opaque(self) -> None:
        """The frame's opaque is put in its place, which is the last one that looks like it."""
        for line, told in (
            (b"mg k v" + OPAQUE + b" t\r\n", b"mg k v O9 t\r\n"),
            (b"ms k 3" + OPAQUE + b"\r\n O\0\r\n", b"ms k 3 O9\r\n O\0\r\n"),
            (b"mg" + OPAQUE + OPAQUE + b"\r\n", b"mg O\0 O9\r\n"),
            (b"me k\r\n", b"me k\r\n"),
        ):
            self.ask(line)
            self.assertEqual(self.told, told)

    def test_answers(self) -> None:
        """An answer is the frame's value, with or without the opaque, and so is an error."""
        for said in (
            b"VA 2 O9 t-1 W\r\nab\r\n", b"HD O9\r\n", b"EN\r\n", b"NF O9\r\n",
            b"ME O1 exp=-1\r\n", b"CLIENT_ERROR invalid flag\r\n", b"SERVER_ERROR busy\r\n",
        ):  # fmt: skip
            for cut in range(len(said)):
                translation = self.ask(b"mg k" + OPAQUE + b"\r\n")
                frames = translation.replies(said[:cut]) + translation.replies(said[cut:])
                (found,) = ResponseDecoder().feed(frames)
                assert isinstance(found, Response)
                self.assertEqual((found.opcode, found.opaque), (META, 9))
                self.assertEqual(found.value, said[:-2] if said[:2] == b"VA" else said, cut)

    def test_nonsense(self) -> None:
        """An answer to somebody else, or to a command that is not known, ends the connection."""
        for said in (b"HD O8\r\n", b"VA 1 O8\r\nx\r\n", b"ERROR\r\n", b"STORED\r\n"):
            with self.assertRaises(RemoteProtocolError):
                self.ask(b"mg k" + OPAQUE + b"\r\n").replies(said)
