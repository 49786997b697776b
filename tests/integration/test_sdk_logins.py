"""The Couchbase SDK: who may log in, to which bucket, and what it raises for those who may not."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import ClassVar

from kvproto.testing.certificates import Authority, Identity
from tests.integration.sdk import (
    ROOT,
    SDKTestCase,
    closing,
    connect,
    connect_with_certificate,
    short_timeouts,
    steer,
)
from tests.integration.service import PATIENCE, KvtlsProcess

SCRAM = ("SCRAM-SHA1", "SCRAM-SHA256", "SCRAM-SHA512")


def passwd(users: Path, name: str, *options: str) -> None:
    """Run ``kvtls passwd``; the password of bob is ``bob's``, and so on."""
    subprocess.run(
        [sys.executable, "-m", "kvproto.cli", "passwd", "--users", users, name, *options],
        cwd=ROOT,
        input=f"{name}'s\n",
        text=True,
        check=True,
        timeout=PATIENCE,
        stdout=subprocess.DEVNULL,
    )


class LoginTests(SDKTestCase):
    """One service with several kinds of users, and three buckets."""

    directory: ClassVar[Path]
    authority: ClassVar[Authority]

    @classmethod
    def start(cls) -> None:
        """Start a service that knows alice, bob, carol, and holders of certificates."""
        cls.directory = Path(tempfile.mkdtemp(prefix="kvtls-sdk-"))
        cls.authority = Authority.root()
        authority = cls.directory / "client-ca.pem"
        authority.write_bytes(cls.authority.certificate_pem)
        users = cls.directory / "users.json"
        passwd(users, "bob")
        passwd(users, "carol", "--bucket", "private", "--bucket", "public")
        cls.service = KvtlsProcess(
            *["--user", "alice:secret", "--user", "a,b=c:d:ü", "--users", str(users)],
            *["--bucket", "default", "--bucket", "private", "--bucket", "public"],
            *["--user-buckets", "alice:default,public", "--client-ca", str(authority)],
            *["--cert-user", "san.dns:suffix=.example", "--cert-user", "subject.cn"],
        )

    @classmethod
    def stop(cls) -> None:
        """Stop the service, and remove the files it was given."""
        super().stop()
        shutil.rmtree(cls.directory, ignore_errors=True)

    def credential(self, identity: Identity) -> tuple[Path, Path]:
        """Return files of a certificate and its key."""
        certificate, key = self.directory / "client.pem", self.directory / "client.key"
        certificate.write_bytes(identity.chain_pem)
        key.write_bytes(identity.key_pem)
        return certificate, key

    def works(self, cluster: object, bucket: str = "default") -> None:
        with closing(cluster) as open_cluster:
            collection = open_cluster.bucket(bucket).default_collection()
            collection.upsert(self.key(), bucket)
            self.assertEqual(collection.get(self.key()).content_as[str], bucket)

    def test_passwords(self) -> None:
        """Users of the command line and of the users file log in with their passwords."""
        for name, password, bucket in (
            ("alice", "secret", "default"),
            ("a,b=c", "d:ü", "private"),
            ("bob", "bob's", "private"),
            ("carol", "carol's", "private"),
        ):
            self.works(connect(self.service, name, password), bucket)

    def test_scram(self) -> None:
        """They can do so without showing the password, with each digest."""
        for mechanism in SCRAM:
            for name, password in (("alice", "secret"), ("bob", "bob's"), ("a,b=c", "d:ü")):
                cluster = connect(self.service, name, password, mechanisms=[mechanism])
                self.works(cluster, "public")

    def test_wrong_password(self) -> None:
        """Wrong passwords, and users that do not exist, are refused at once and alike."""
        from couchbase.exceptions import AuthenticationException

        for mechanisms in (None, *([mechanism] for mechanism in SCRAM)):
            for name in ("alice", "nobody"):
                self.assertRaises(
                    AuthenticationException,
                    connect,
                    self.service,
                    name,
                    "wrong",
                    mechanisms=mechanisms,
                )

    def test_buckets(self) -> None:
        """A bucket that does not exist, and one that is somebody else's, are not found."""
        from couchbase.exceptions import BucketNotFoundException

        with closing(connect(self.service)) as cluster:
            for name in ("nowhere", "private"):
                self.assertRaises(BucketNotFoundException, cluster.bucket, name)
            cluster.bucket("public").default_collection().upsert(self.key(), 1)
            self.assertFalse(
                cluster.bucket("default").default_collection().exists(self.key()).exists
            )

    def test_certificate(self) -> None:
        """A client certificate is a login by itself; the first rule that names a user counts."""
        for identity in (
            self.authority.issue("alice"),
            self.authority.issue("x", ["alice.example"]),
            self.authority.issue("alice", ["nobody.example"]),
        ):
            self.works(connect_with_certificate(self.service, *self.credential(identity)))
        # bob may use what alice may not: the rule that comes first decides.
        identity = self.authority.issue("alice", ["bob.example"])
        files = self.credential(identity)
        self.works(connect_with_certificate(self.service, *files), "private")

    def test_certificate_of_nobody(self) -> None:
        """A certificate that names no user, or comes from elsewhere, is no login."""
        from couchbase.exceptions import CouchbaseException

        for identity in (self.authority.issue("nobody"), Authority.root().issue("alice")):
            files = self.credential(identity)
            with self.assertRaises(CouchbaseException):
                connect_with_certificate(self.service, *files, timeouts=short_timeouts())

    def test_wrong_authority(self) -> None:
        """A service whose certificate comes from elsewhere is not talked to."""
        from couchbase.exceptions import UnAmbiguousTimeoutException

        other = self.directory / "other-ca.pem"
        other.write_bytes(Authority.root().certificate_pem)
        self.assertRaises(
            UnAmbiguousTimeoutException,
            connect,
            self.service,
            ca=other,
            timeouts=short_timeouts(),
        )


class UsersFileTests(SDKTestCase):
    """A users file that changes while the service runs."""

    options = None

    def may_log_in(self, service: KvtlsProcess, name: str) -> bool:
        from couchbase.exceptions import AuthenticationException

        try:
            with closing(connect(service, name, f"{name}'s")):
                return True
        except AuthenticationException:
            return False

    def test_changes(self) -> None:
        """Users that come and go do so at a reload, or when the file is looked at next."""
        with tempfile.TemporaryDirectory() as directory:
            users = Path(directory, "users.json")
            passwd(users, "bob")
            for interval in ("0", "0.2"):
                with KvtlsProcess("--users", str(users), "--watch-interval", interval) as service:
                    self.assertTrue(self.may_log_in(service, "bob"))
                    self.assertFalse(self.may_log_in(service, "carol"))
                    passwd(users, "carol")
                    passwd(users, "bob", "--delete")
                    if interval == "0":
                        steer(service, "reload")
                    self.until(partial(self.may_log_in, service, "carol"))
                    # The file has changed twice; the first change may have been read alone.
                    self.until(lambda: not self.may_log_in(service, "bob"))
                passwd(users, "bob")
                passwd(users, "carol", "--delete")


class OpenServiceTests(SDKTestCase):
    """A service without users."""

    options = ()

    def test_any_password(self) -> None:
        """Everybody may work, whatever they say to a service that asks for nothing."""
        with closing(connect(self.service, "me", "anything")) as cluster:
            cluster.bucket("default").default_collection().upsert(self.key(), 1)


class StrictServiceTests(SDKTestCase):
    """A service that demands client certificates."""

    options = None

    def test_no_certificate(self) -> None:
        """A password is not enough."""
        from couchbase.exceptions import UnAmbiguousTimeoutException

        with tempfile.TemporaryDirectory() as directory:
            authority = Path(directory, "ca.pem")
            authority.write_bytes(Authority.root().certificate_pem)
            with KvtlsProcess(
                *["--client-ca", str(authority), "--client-auth", "required"],
                *["--user", "alice:secret"],
            ) as service:
                self.assertRaises(
                    UnAmbiguousTimeoutException, connect, service, timeouts=short_timeouts()
                )
