"""Generations: proved before they serve, and what they think of peers."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path
from unittest import mock

from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import ClientAuth
from kvproto.testing.certificates import (
    Authority,
    Identity,
    ca_names,
    client_identity,
    deep_server_identity,
    root_authority,
    server_identity,
)
from kvproto.tls.contexts import ServerPolicy
from kvproto.tls.files import CredentialFiles
from kvproto.tls.generation import (
    Generation,
    GenerationError,
    Stage,
    build_generation,
    digest_on_disk,
    rebuild_generation,
)
from tests.tls.material import NOW, crl_of, der_chain, folder, moment, write_identity

ROOT = root_authority()
OPTIONAL = ServerPolicy(ClientAuth.OPTIONAL)
PLAIN = ServerPolicy()
REQUIRED = ServerPolicy(ClientAuth.REQUIRED)


def built(files: CredentialFiles, policy: ServerPolicy = PLAIN, **options) -> Generation:
    """Build a generation that is known to be good and new."""
    generation = build_generation(options.pop("number", 1), files, policy, NOW, **options)
    assert generation is not None
    return generation


class GenerationCase(SynchronousTestCase):
    """A directory with good files."""

    def setUp(self) -> None:
        self.directory = folder(self)
        self.files = write_identity(self.directory, server_identity(), client_ca=ROOT)

    def refused(self, stage: Stage, *phrases: str, policy=OPTIONAL, **options) -> GenerationError:
        error: GenerationError = self.assertRaises(
            GenerationError, build_generation, 2, self.files, policy, NOW, **options
        )
        self.assertEqual(error.stage, stage)
        for phrase in phrases:
            self.assertIn(phrase, str(error))
        return error


class BuildTests(GenerationCase):
    """From files to something that can serve."""

    def test_values(self) -> None:
        """A generation tells its number, fingerprint, end and names."""
        generation = built(self.files, OPTIONAL, number=7)
        self.assertEqual(generation.number, 7)
        self.assertEqual(generation.fingerprint, generation.credentials.fingerprint)
        self.assertEqual(generation.names, ("localhost", "127.0.0.1", "::1"))
        self.assertEqual(
            generation.not_after, server_identity().certificate.not_valid_after_utc.timestamp()
        )

    def test_large_material(self) -> None:
        """Large chains and long lists of CAs prove themselves in every mode."""
        for identity in (deep_server_identity(), server_identity(100_000)):
            files = write_identity(self.directory, identity)
            path = self.directory / "cas.pem"
            path.write_bytes(b"".join(ca.certificate_pem for ca in ca_names()))
            files = replace(files, client_ca=path)
            for auth in ClientAuth:
                generation = built(files, ServerPolicy(auth))
                self.assertEqual(generation.credentials.chain[0], identity.certificate)

    def test_warnings(self) -> None:
        """What the operator should know comes along as text."""
        write_identity(
            self.directory,
            ROOT.issue("node", ["a.example"], not_before=moment(-20), not_after=moment(3)),
        )
        warnings = built(self.files).warnings
        self.assertIn("CN=node expires in", warnings[0])

    def test_unchanged(self) -> None:
        """Files with the content that is served make no new generation."""
        first = built(self.files)
        self.assertIsNone(build_generation(2, self.files, ServerPolicy(), NOW, previous=first))
        key = self.directory / "key.pem"
        key.write_bytes(key.read_bytes() + b"\n")
        self.assertIsNotNone(build_generation(2, self.files, ServerPolicy(), NOW, previous=first))

    def test_unchanged_and_expired(self) -> None:
        """Files that are served already, and have expired since, are refused."""
        first = built(self.files)
        error = self.assertRaises(
            GenerationError,
            build_generation,
            2,
            self.files,
            ServerPolicy(),
            moment(40).timestamp(),
            previous=first,
        )
        self.assertIn("has expired", str(error))

    def test_key_log_is_silent(self) -> None:
        """The proving handshakes leave nothing in the key log."""
        lines: list[bytes] = []
        built(self.files, ServerPolicy(keylog=lines.append))
        self.assertEqual(lines, [])

    def test_digest_on_disk(self) -> None:
        """The digest on disk equals the generation's until a file changes or vanishes."""
        generation = built(self.files)
        self.assertEqual(digest_on_disk(self.files), generation.credentials.digest)
        write_identity(self.directory, ROOT.issue("other"))
        self.assertNotEqual(digest_on_disk(self.files), generation.credentials.digest)
        (self.directory / "key.pem").unlink()
        self.assertEqual(digest_on_disk(self.files), "")


class RefusalTests(GenerationCase):
    """What is refused, at which stage, and whether waiting may help."""

    def write(self, name: str, content: bytes) -> Path:
        path = self.directory / name
        path.write_bytes(content)
        return path

    def test_table(self) -> None:
        """Each bad file is refused; those that may be half written are marked."""
        other = ROOT.issue("other", ["localhost"])
        early = ROOT.issue("early", not_before=moment(1))
        late = ROOT.issue("late", not_before=moment(-3), not_after=moment(-1))
        for name, content, stage, phrase, unfinished in (
            ("key.pem", b"", Stage.READ, "is empty", True),
            ("key.pem", other.key_pem, Stage.CHECK, "does not fit", True),
            ("key.pem", other.key_pem[:100], Stage.CHECK, "cut off", True),
            ("key.pem", b"garbage", Stage.CHECK, "is not PEM", True),
            ("chain.pem", early.chain_pem, Stage.CHECK, "does not fit", True),
            ("ca.pem", b"garbage", Stage.CHECK, "is not PEM", True),
            ("ca.pem", other.chain_pem, Stage.CHECK, "holds no CA", False),
            ("pair", late.chain_pem + late.key_pem, Stage.CHECK, "has expired", False),
            ("pair", early.chain_pem + early.key_pem, Stage.CHECK, "is not yet valid", False),
        ):
            self.files = write_identity(self.directory, server_identity(), client_ca=ROOT)
            path = self.write(name, content)
            if name == "pair":
                self.files = CredentialFiles(path)
            error = self.refused(stage, phrase)
            self.assertEqual(error.unfinished, unfinished, phrase)

    def test_missing(self) -> None:
        """A missing file is refused at reading, and may be there in a moment."""
        (self.directory / "chain.pem").unlink()
        self.assertTrue(self.refused(Stage.READ, "certificate", "no such file").unfinished)

    def test_names(self) -> None:
        """Names that are served must stay, or come back as a wildcard."""
        self.files = write_identity(self.directory, ROOT.issue("a", ["a.kv.example", "10.0.0.1"]))
        first = built(self.files)
        write_identity(self.directory, ROOT.issue("b", ["b.kv.example"]))
        self.refused(Stage.NAMES, "not good for a.kv.example, 10.0.0.1", previous=first)
        self.assertEqual(
            built(self.files, previous=first, allow_fewer_names=True).names, ("b.kv.example",)
        )
        write_identity(self.directory, ROOT.issue("c", ["*.kv.example", "10.0.0.1"]))
        self.assertEqual(len(built(self.files, previous=first).names), 2)
        write_identity(self.directory, ROOT.issue("d", ["*.0.0.1", "*.example", "10.0.0.1"]))
        self.refused(Stage.NAMES, "not good for a.kv.example,", previous=first)

    def test_handshake_with_itself(self) -> None:
        """What OpenSSL refuses in spite of all checks never serves."""
        for side in ("server", "client"):
            real = SSL.Connection.do_handshake

            def fail(connection: SSL.Connection) -> None:
                own = "server" if connection.get_app_data() is not None else "client"
                if own == side:  # noqa: B023
                    raise SSL.Error([("SSL routines", "", "unheard of")])
                real(connection)  # noqa: B023

            self.patch(SSL.Connection, "do_handshake", fail)
            self.refused(Stage.HANDSHAKE, f"with itself, on TLS 1.2: the {side} says unheard of")
            self.patch(SSL.Connection, "do_handshake", real)

    def test_handshake_that_never_ends(self) -> None:
        """A handshake with itself that makes no progress is given up."""

        def wait(_connection: SSL.Connection) -> None:
            raise SSL.WantReadError

        self.patch(SSL.Connection, "do_handshake", wait)
        self.refused(Stage.HANDSHAKE, "does not come to an end")

    def test_context_cannot_be_built(self) -> None:
        """An error while the context is built is a refusal, not a crash."""
        with mock.patch.object(
            SSL.Context,
            "use_certificate",
            side_effect=SSL.Error([("SSL routines", "", "ee key too small")]),
        ):
            self.refused(Stage.HANDSHAKE, "ee key too small")


class RebuildTests(GenerationCase):
    """An earlier generation's credentials in a new generation."""

    def test_new_context(self) -> None:
        """Credentials are the same, number and context are new."""
        first = built(self.files)
        third = rebuild_generation(3, first, NOW)
        self.assertEqual((third.number, third.fingerprint), (3, first.fingerprint))
        self.assertIsNot(third.context, first.context)

    def test_expired(self) -> None:
        """Credentials that have expired meanwhile are refused."""
        first = built(self.files)
        error = self.assertRaises(
            GenerationError, rebuild_generation, 3, first, moment(31).timestamp()
        )
        self.assertEqual(error.stage, Stage.CHECK)
        self.assertIn("CN=localhost has expired", str(error))


class VerifyPeerTests(GenerationCase):
    """What a generation thinks of peers that an earlier one let in."""

    def judge(
        self,
        identity: Identity | None,
        *,
        ca: Authority = ROOT,
        policy: ServerPolicy = OPTIONAL,
        crl: bytes = b"",
        now: float = NOW,
    ) -> str | None:
        files = write_identity(self.directory, server_identity(), client_ca=ca, crl=crl)
        chain = der_chain(identity) if identity else ()
        return built(files, policy).verify_peer(chain, now)

    def test_trusted(self) -> None:
        """A peer of the trusted CA stays, directly issued or by an intermediate it sent."""
        self.assertIsNone(self.judge(client_identity()))
        self.assertIsNone(self.judge(ROOT.intermediate("upper").issue("bob")))

    def test_trust_changed(self) -> None:
        """A peer of a CA that is trusted no more goes, and the reason says why."""
        reason = self.judge(client_identity("alice"), ca=Authority.root("CA 2"))
        self.assertEqual(reason, "certificate CN=alice (depth 0): its issuer is not trusted")

    def test_same_name_other_key(self) -> None:
        """A new CA of the same name is another CA."""
        reason = self.judge(client_identity("alice"), ca=Authority.root("kvproto test CA"))
        self.assertIsNotNone(reason)

    def test_revoked(self) -> None:
        """A revoked peer goes, others of its CA stay."""
        crl = crl_of(ROOT, [client_identity("eve")])
        reason = self.judge(client_identity("eve"), crl=crl)
        self.assertEqual(reason, "certificate CN=eve (depth 0): it is revoked")
        self.assertIsNone(self.judge(client_identity("alice"), crl=crl))

    def test_revoked_intermediate(self) -> None:
        """A peer whose issuer is revoked goes."""
        upper = ROOT.intermediate("upper")
        files = write_identity(self.directory, server_identity())
        (self.directory / "cas.pem").write_bytes(ROOT.certificate_pem + upper.certificate_pem)
        revoked = Identity(upper.certificate, upper.key)
        (self.directory / "crls.pem").write_bytes(crl_of(ROOT, [revoked]) + crl_of(upper))
        files = replace(
            files, client_ca=self.directory / "cas.pem", crl=self.directory / "crls.pem"
        )
        reason = built(files, OPTIONAL).verify_peer(der_chain(upper.issue("bob")), NOW)
        self.assertEqual(reason, "certificate CN=upper (depth 1): it is revoked")

    def test_time_passes(self) -> None:
        """The same generation judges by the time that it is told."""
        generation = built(self.files, OPTIONAL)
        chain = der_chain(ROOT.issue("short", not_after=moment(2)))
        for days, good in ((0, True), (3, False), (1, True)):
            reason = generation.verify_peer(chain, moment(days).timestamp())
            self.assertEqual(reason is None, good)
        self.assertEqual(
            generation.verify_peer(chain, moment(3).timestamp()),
            "certificate CN=short (depth 0): it has expired",
        )

    def test_no_certificate(self) -> None:
        """A peer without certificate stays, unless one is required now."""
        self.assertIsNone(self.judge(None))
        self.assertEqual(self.judge(None, policy=REQUIRED), "a client certificate is required now")

    def test_no_client_auth(self) -> None:
        """Where nobody is asked for a certificate, nobody goes for one."""
        stranger = Authority.root("stranger").issue("mallory")
        self.assertIsNone(self.judge(stranger, policy=ServerPolicy()))

    def test_junk(self) -> None:
        """A chain that does not parse is not trusted."""
        generation = built(self.files, OPTIONAL)
        self.assertEqual(generation.verify_peer((b"junk",), NOW), "its certificate does not parse")

    def test_intermediate_as_anchor(self) -> None:
        """A CA that is no root can be trusted alone; with a CRL, its root is asked for."""
        upper = ROOT.intermediate("upper")
        self.assertIsNone(self.judge(upper.issue("bob"), ca=upper))
        error = self.assertRaises(
            GenerationError, self.judge, upper.issue("bob"), ca=upper, crl=crl_of(upper)
        )
        self.assertIn("put CN=kvproto test CA, which issued CN=upper, into client_ca", str(error))

    def test_agrees_with_handshakes(self) -> None:
        """The time given as UTC is the time that is used, in any time zone of the machine."""
        edge = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=2)
        chain = der_chain(ROOT.issue("edge", not_after=edge))
        generation = built(self.files, OPTIONAL)
        self.assertIsNone(generation.verify_peer(chain, edge.timestamp() - 60))
        self.assertIsNotNone(generation.verify_peer(chain, edge.timestamp() + 60))
