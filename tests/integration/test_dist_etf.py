"""Our codec and Erlang's agree: terms made by real erl survive the way through ours."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, seed
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kvproto.dist import encode
from kvproto.dist.etf import decode_at
from kvproto.errors import LocalProtocolError
from tests.dist.test_etf import ONCE, TERMS, WILD
from tests.examples import examples
from tests.integration.peers import require
from tests.integration.service import PATIENCE

COUNT = 4000

PRELUDE = """
-module(fz).
-export([write/1, compare/1, judge/1]).

write([File]) ->
    rand:seed(exsss, {1, 2, 3}),
    Terms = [t(4) || _ <- lists:seq(1, %(count)d)],
    ok = file:write_file(File, [begin B = term_to_binary(T), <<(byte_size(B)):32, B/binary>> end
                                || T <- Terms]),
    halt(0).

compare([Left, Right]) ->
    {ok, A} = file:read_file(Left),
    {ok, B} = file:read_file(Right),
    io:format("same ~b of ~b~n", same(A, B, 0, 0)),
    halt(0).

judge([File]) ->
    {ok, Data} = file:read_file(File),
    io:format("~w~n", [[I || {I, B} <- numbered(Data, 0), not readable(B)]]),
    halt(0).

numbered(<<N:32, B:N/binary, Rest/binary>>, I) -> [{I, B} | numbered(Rest, I + 1)];
numbered(<<>>, _) -> [].

readable(B) -> try binary_to_term(B), true catch error:badarg -> false end.

same(<<N:32, A:N/binary, RestA/binary>>, <<M:32, B:M/binary, RestB/binary>>, Same, All) ->
    case binary_to_term(A) =:= binary_to_term(B) of
        true -> same(RestA, RestB, Same + 1, All + 1);
        false -> io:format("differ: ~0p~n", [binary_to_term(A)]), same(RestA, RestB, Same, All + 1)
    end;
same(_, _, Same, All) -> [Same, All].

r(N) -> rand:uniform(N).
sign(X) -> case r(2) of 1 -> X; 2 -> -X end.
bytes(N) -> list_to_binary([r(256) - 1 || _ <- lists:seq(1, N)]).

t(0) -> leaf(r(17));
t(D) ->
    case r(9) of
        1 -> list_to_tuple([t(D - 1) || _ <- lists:seq(1, r(5) - 1)]);
        2 -> [t(D - 1) || _ <- lists:seq(1, r(6) - 1)];
        3 -> [t(D - 1), t(D - 1) | t(0)];
        4 -> maps:from_list([{t(D - 1), t(D - 1)} || _ <- lists:seq(1, r(5) - 1)]);
        5 -> #{1 => t(D - 1), 1.0 => t(D - 1), true => t(D - 1)};
        6 -> #{#{t(1) => [1]} => t(D - 1), [t(0)] => 2};
        _ -> leaf(r(17))
    end.

leaf(1) -> r(300) - 20;
leaf(2) -> sign(r(1 bsl 31) + r(10));
leaf(3) -> sign(r(1 bsl 62) * r(1 bsl 62));
leaf(4) -> <<X:2400>> = bytes(300), sign(X);
leaf(5) -> sign(rand:uniform() * math:pow(10, r(600) - 300));
leaf(6) -> lists:nth(r(6), [true, false, ok, '', 'with space', undefined]);
leaf(7) -> list_to_atom([r(16#d000) || _ <- lists:seq(1, r(255))]);
leaf(8) -> bytes(r(40) - 1);
leaf(9) -> Bits = r(60), <<X:Bits/bitstring, _/bitstring>> = bytes(8), X;
leaf(10) -> [r(256) - 1 || _ <- lists:seq(1, r(30))];
leaf(11) -> self();
leaf(12) -> make_ref();
leaf(13) -> hd(erlang:ports());
leaf(14) -> fun lists:map/2;
leaf(15) -> X = r(100), fun(Y) -> X + Y end;
leaf(16) -> lists:nth(r(4), [[], {}, #{}, <<>>]);
leaf(17) -> lists:seq(1, r(20) + 250).
"""


class DifferentialTests(SynchronousTestCase):
    """Random terms, ours judged by erl and erl's by us."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="kvproto-etf-"))
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        (self.directory / "fz.erl").write_text(PRELUDE % {"count": COUNT})
        self.run_command(require("erlc", "erlang-base"), "fz.erl")

    def run_command(self, *command: str) -> str:
        """Run a command in the directory; return what it printed."""
        done = subprocess.run(
            command,
            cwd=self.directory,
            env={"HOME": str(self.directory), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def erl(self, function: str, *arguments: str) -> str:
        """Run a function of the module above."""
        return self.run_command(
            require("erl", "erlang-base"),
            *("-noinput", "-boot", "start_clean", "-run", "fz", function, *arguments),
        )

    def test_whatever_we_write(self) -> None:
        """Of whatever a program may hand over, erl can read what we write."""
        written: list[bytes] = []

        @seed(1)
        @examples(1500)
        @given(st.one_of(WILD, TERMS))
        def write(term: Any) -> None:
            with contextlib.suppress(LocalProtocolError):
                written.append(encode(term))

        write()
        written += [encode(term) for term in ONCE.values()]
        # What erl would say of a map with a key twice: it can tell, in this test.
        written.append(bytes.fromhex("8374000000026101610161016102"))
        (self.directory / "ours").write_bytes(
            b"".join(len(data).to_bytes(4, "big") + data for data in written)
        )
        self.assertGreater(len(written), 50)
        self.assertEqual(self.erl("judge", "ours").strip(), f"[{len(written) - 1}]")

    def test_round_trip(self) -> None:
        """What we decode and encode again, erl takes for the same term."""
        directory = self.directory
        self.erl("write", "out")
        data = (directory / "out").read_bytes()
        back = []
        position = 0
        while position < len(data):
            size = int.from_bytes(data[position : position + 4], "big")
            term, end = decode_at(data, position + 4)
            self.assertEqual(end, position + 4 + size)
            encoded = encode(term)
            back.append(len(encoded).to_bytes(4, "big") + encoded)
            position = end
        self.assertEqual(len(back), COUNT)
        (directory / "back").write_bytes(b"".join(back))
        said = self.erl("compare", "out", "back")
        self.assertEqual(said.strip().splitlines()[-1], f"same {COUNT} of {COUNT}")
