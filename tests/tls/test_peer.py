"""What is told of a peer after a handshake in memory."""

from __future__ import annotations

from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import ClientAuth
from kvproto.testing.certificates import root_authority
from kvproto.tls.contexts import ServerPolicy, build_client_context, build_server_context
from kvproto.tls.peer import peer_chain, tls_version
from tests.tls.material import credentials_of, der_chain, shake_hands
from tests.tls.wired import VERSIONS


class PeerTests(SynchronousTestCase):
    """Certificates and version, as either side sees them."""

    def test_chain(self) -> None:
        """The leaf comes first, then what it was sent with; nothing where none was shown."""
        root = root_authority()
        below = root.intermediate("office")
        node, alice = root.intermediate("site").issue("node", ("localhost",)), below.issue("alice")
        for name, version in VERSIONS.items():
            for identity in (alice, None):
                server = SSL.Connection(
                    build_server_context(
                        credentials_of(node, (root,)), ServerPolicy(ClientAuth.OPTIONAL)
                    ),
                    None,
                )
                context = build_client_context(
                    credentials_of(identity) if identity else None, (root.certificate,)
                )
                context.set_max_proto_version(version)
                client = SSL.Connection(context, None)
                self.assertEqual(shake_hands(server, client), (None, None))
                self.assertEqual(peer_chain(client), der_chain(node))
                self.assertEqual(peer_chain(server), der_chain(identity) if identity else ())
                self.assertEqual((tls_version(client), tls_version(server)), (name, name))
