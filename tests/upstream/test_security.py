"""The files that an engine's URL names: every change of them, in every state of the watch."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.base.watch import SETTLE_S
from kvproto.errors import ConfigError
from kvproto.testing.certificates import Authority
from kvproto.upstream.options import EngineOptions
from kvproto.upstream.security import EngineSecrets
from tests.upstream.logged import lines_of

EVERY = 2.0


class SecretsTests(SynchronousTestCase):
    """`EngineSecrets`: nothing new, something new that may be half written, or settled."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.path = self.directory / "password"
        self.path.write_bytes(b"first\nmore\n")
        self.renewed: list[tuple[bytes, ...]] = []

    def make(self, interval: float = EVERY, **files: Path | str) -> EngineSecrets:
        options = EngineOptions(
            servers=(("h", 1),),
            **{"password_file": self.path, **files},  # type: ignore[arg-type]
        )
        secrets = EngineSecrets(
            options, self.clock, interval, lambda: self.renewed.append(secrets.login)
        )
        self.addCleanup(secrets.stop)
        return secrets

    def test_login(self) -> None:
        """The password is the file's first line; a user goes before it."""
        self.assertEqual(self.make().login, (b"first",))
        self.assertEqual(self.make(user="me").login, (b"me", b"first"))
        self.path.write_bytes(b"with cr\r\n")
        self.assertEqual(self.make().login, (b"with cr",))

    def test_settled(self) -> None:
        """New content is used once it has been seen twice the same."""
        secrets = self.make()
        secrets.start()
        self.clock.advance(EVERY)
        self.path.write_bytes(b"second")
        self.clock.advance(EVERY)
        self.assertEqual((secrets.login, self.renewed), ((b"first",), []))
        self.clock.advance(SETTLE_S)
        self.assertEqual((secrets.login, self.renewed), ((b"second",), [(b"second",)]))
        self.clock.pump([EVERY] * 3)
        self.assertEqual(len(self.renewed), 1)

    def test_still_changing(self) -> None:
        """Content that changes again waits again; one that goes back was nothing."""
        secrets = self.make()
        secrets.start()
        self.path.write_bytes(b"sec")
        self.clock.advance(EVERY)
        self.path.write_bytes(b"second")
        self.clock.advance(SETTLE_S)
        self.assertEqual(self.renewed, [])
        self.path.write_bytes(b"first\nmore\n")
        self.clock.advance(SETTLE_S)
        self.path.write_bytes(b"second")
        self.clock.advance(EVERY)
        self.assertEqual(self.renewed, [])
        self.clock.advance(SETTLE_S)
        self.assertEqual(self.renewed, [(b"second",)])

    def test_useless(self) -> None:
        """Content that cannot be used is reported once and changes nothing; the next is seen."""
        lines = lines_of(self)
        secrets = self.make()
        secrets.start()
        for useless in (b"", None):
            self.path.write_bytes(useless) if useless is not None else self.path.unlink()
            self.clock.advance(EVERY)
            self.clock.advance(SETTLE_S)
            self.assertEqual((secrets.login, self.renewed), ((b"first",), []))
            self.assertEqual(len([line for line in lines() if "the old ones stay" in line]), 1)
            self.clock.advance(EVERY)
            lines = lines_of(self)
        self.path.write_bytes(b"second")
        self.clock.advance(EVERY)
        self.clock.advance(SETTLE_S)
        self.assertEqual(self.renewed, [(b"second",)])

    def test_timers(self) -> None:
        """One timer while it looks, however often it is started; none after its end."""
        secrets = self.make()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        secrets.start()
        secrets.start()
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.path.write_bytes(b"second")
        self.clock.advance(EVERY)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        secrets.stop()
        secrets.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.make(0).start()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_refused_at_start(self) -> None:
        """What cannot be used is named."""
        authority = Authority.root("ca")
        one, other = (authority.issue(name, (name,)) for name in ("one", "other"))
        files = {
            "chain": one.chain_pem, "key": one.key_pem, "other": other.key_pem, "none": b"none",
            "broken": b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
        }  # fmt: skip
        path = {name: self.directory / name for name in files}
        for name, content in files.items():
            path[name].write_bytes(content)
        missing, endless = self.directory / "missing", Path("/dev/zero")
        for given, said in (
            ({"password_file": missing}, f"password-file {missing}: No such file"),
            ({"ca": path["none"]}, "holds no PEM certificate"),
            ({"ca": path["broken"]}, "a certificate in it cannot be read"),
            ({"cert": path["chain"], "key": path["none"]}, "holds no PEM key"),
            ({"cert": path["chain"], "key": path["other"]}, "does not belong to cert"),
            ({"cert": missing}, f"cert {missing}: No such file"),
            ({"password_file": endless}, f"password-file {endless}: it is not a regular file"),
            ({"ca": endless}, f"ca {endless}: it is not a regular file"),
        ):
            error = self.assertRaises(ConfigError, self.make, **given)
            self.assertIn(said, str(error))
        self.make(cert=path["chain"], key=path["key"]).connection_creator("h")
