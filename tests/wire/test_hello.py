"""What a client asks for in HELLO."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import LocalProtocolError, RemoteProtocolError
from kvproto.wire.constants import Feature, Status
from kvproto.wire.hello import decode_agent, decode_features, encode_features, negotiate
from tests.examples import examples

# The list that the Python SDK 4.6.3 sends.
SDK = bytes.fromhex(
    "0003 0006 0007 0008 000b 000c 0010 000f 0011 0015 0012 0017 0014 001c 0021 000e 000d 001e"
    "000a 0004"
)


class FeatureTests(SynchronousTestCase):
    """Lists of features."""

    def test_golden(self):
        """The SDK's list is read in order and written back."""
        features = decode_features(SDK)
        self.assertEqual(features[:3], [Feature.TCP_NODELAY, Feature.XATTR, Feature.XERROR])
        self.assertEqual(len(features), 20)
        self.assertEqual(encode_features(features), SDK)
        self.assertTrue(set(features) <= set(Feature))

    def test_odd_length(self):
        """Half a number is "invalid"."""
        with self.assertRaises(RemoteProtocolError) as caught:
            decode_features(SDK[:-1])
        self.assertEqual(caught.exception.status, Status.INVALID)

    def test_out_of_range(self):
        """Numbers beyond 16 bits are the caller's fault."""
        self.assertRaises(LocalProtocolError, encode_features, [0x10000])
        self.assertRaises(LocalProtocolError, encode_features, [-1])
        self.assertEqual(encode_features([0, 0xFFFF]), b"\0\0\xff\xff")

    def test_clustermap_needs_duplex(self):
        """A client that cannot be asked anything is not promised notifications."""
        offered = set(Feature)
        self.assertEqual(negotiate([0x0D, 0x03], offered), [0x03])
        self.assertEqual(negotiate([0x0D, 0x0C], offered), [0x0D, 0x0C])
        self.assertEqual(negotiate([0x0D, 0x0C], offered - {Feature.DUPLEX}), [])

    @examples(100)
    @given(st.lists(st.integers(0, 0x30)), st.sets(st.integers(0, 0x30)))
    def test_honest(self, asked, offered):
        """Only what was asked for and is offered is granted, once each, in the asked order."""
        granted = negotiate(asked, offered)
        self.assertTrue(set(granted) <= set(asked) & offered)
        self.assertEqual(len(set(granted)), len(granted))
        self.assertEqual(granted, sorted(granted, key=asked.index))
        self.assertTrue(set(asked) & offered - {0x0D, 0x1F} <= set(granted))


class AgentTests(SynchronousTestCase):
    """What a client calls itself."""

    def test_names(self):
        """Both forms that clients send."""
        self.assertEqual(
            decode_agent(b'{"a":"python/4.6.3 (Linux)","i":"e8a3/01ff"}'),
            ("python/4.6.3 (Linux)", "e8a3/01ff"),
        )
        self.assertEqual(decode_agent(b"mchello v1.0"), ("mchello v1.0", ""))
        self.assertEqual(decode_agent(b""), ("", ""))
        self.assertEqual(decode_agent(b'{"a":5}'), ('{"a":5}', ""))
        self.assertEqual(decode_agent(b'{"a":"x","i":[]}'), ("x", ""))
        self.assertEqual(decode_agent(b"a\nb\x1b[0m"), ("a\ufffdb\ufffd[0m", ""))

    @examples(200)
    @given(st.one_of(st.binary(max_size=400), st.just(b'{"a":' + b"[" * 60000)))
    def test_any_bytes(self, key):
        """Whatever it is becomes short and printable."""
        for text in decode_agent(key):
            self.assertLessEqual(len(text), 250)
            self.assertTrue(text.isprintable())
