"""Who is let in, what is there, and what nobody can do to the site."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure

from kvproto.base.http import IDLE_SECONDS
from kvproto.management.site import MAX_BODY, MAX_CONNECTIONS
from tests.management.support import LIMITED, SiteCase


class LoginTests(SiteCase):
    """The service's own users, by Basic authentication."""

    def test_strangers(self) -> None:
        """Without a password, or with a wrong one, every path is 401."""
        for who in (None, ("root", "wrong"), ("nobody", "secret12"), ("", "")):
            self.who = who
            for path in ("/", "/pools", "/pools/default", "/nope", "/admin/ping"):
                code, body = self.get(path)
                self.assertEqual((code, body), (401, ""), (who, path))
            self.assertEqual(self.create_bucket()[0], 401)
        self.assertEqual([*self.server.buckets], ["default"])

    def test_headers(self) -> None:
        """What is no Basic authentication is nobody's; the answer says what is wanted."""
        for given in ("Bearer x", "Basic", "Basic !", "Basic gA==", "basic", "x"):
            code, headers, _ = self.raw(
                f"GET /pools HTTP/1.1\r\nHost: x\r\nAuthorization: {given}\r\n\r\n".encode()
            )
            self.assertEqual(code, 401, given)
            self.assertTrue(headers["www-authenticate"].startswith("basic realm="))

    def test_limited(self) -> None:
        """A user of one bucket sees that, and changes nothing."""
        self.create_bucket("secret")
        self.who = LIMITED
        self.assertEqual([b["name"] for b in self.get("/pools/default/buckets")[1]], ["default"])
        self.assertEqual(self.get("/pools/default/b/default")[0], 200)
        names = [b["bucketName"] for b in self.get("/pools/default")[1]["bucketNames"]]
        self.assertEqual(names, ["default"])
        for method, path, form in (
            ("GET", "/pools/default/buckets/secret", None),
            ("GET", "/pools/default/buckets/secret/scopes", None),
            ("DELETE", "/pools/default/buckets/secret", None),
        ):
            self.assertEqual(self.ask(method, path, form)[0], 404, path)
        refused: tuple[tuple[str, str, Any], ...] = (
            ("POST", "/pools/default/buckets", {"name": "x", "ramQuotaMB": "100"}),
            ("DELETE", "/pools/default/buckets/default", None),
            ("POST", "/pools/default/buckets/default", {"flushEnabled": "1"}),
            ("POST", "/pools/default/buckets/default/controller/doFlush", None),
            ("POST", "/pools/default/buckets/default/scopes", {"name": "s"}),
            ("PUT", "/settings/rbac/users/local/x", {"password": "123456", "roles": "admin"}),
            ("GET", "/settings/rbac/users/local/root", None),
            ("POST", "/settings/web", {"username": "x", "password": "123456"}),
        )
        for method, path, form in refused:
            code, body = self.ask(method, path, form)
            self.assertEqual(code, 403, path)
            self.assertTrue(body["message"].startswith("Forbidden."), path)
            self.assertEqual(len(body["permissions"]), 1)


class LoginCountTests(SiteCase):
    """What ``kvtls_logins_total`` is told."""

    def test_passwords(self) -> None:
        """Right and wrong ones count, and so does what is no login at all; none counts nothing."""
        self.assertEqual(self.get("/pools")[0], 200)
        for who in (("Administrator", "wrong"), ("nobody", "password")):
            self.assertEqual(self.get("/pools", who=who)[0], 401)
        code, _, _ = self.raw(
            b"GET /pools HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer word\r\n\r\n"
        )
        self.assertEqual(code, 401)
        self.who = None
        self.assertEqual(self.get("/pools")[0], 401)
        self.assertEqual(self.logins, {("PLAIN", "success"): 1, ("PLAIN", "failure"): 3})


class NobodyTests(SiteCase):
    """A service without users, as a node that is not set up."""

    options = {"users": (), "user_buckets": ()}
    who = None

    def test_everything(self) -> None:
        """Everybody may do everything, with or without a name."""
        self.assertEqual(self.create_bucket()[0], 202)
        self.assertEqual(self.get("/pools", who=("any", "body"))[1]["isAdminCreds"], True)

    def test_first_user(self) -> None:
        """``/settings/web`` makes the first user, whose password is checked then."""
        answer = self.post("/settings/web", username="Administrator", password="password")
        self.assertEqual(answer[0], 200)
        self.assertEqual(self.get("/pools", who=("Administrator", "password"))[0], 200)
        self.assertEqual(self.get("/pools", who=("Administrator", "wrong"))[0], 401)
        self.assertEqual(self.get("/pools")[0], 401)
        self.who = ("Administrator", "password")
        code, body = self.post("/settings/web", username="", password="x")
        self.assertEqual((code, set(body["errors"])), (400, {"username", "password"}))


class AnonymousTests(SiteCase):
    """``--anonymous``, beside users."""

    options = {"anonymous": True}

    def test_no_administrators(self) -> None:
        """Clients may work without a login, but nobody administers without one."""
        self.assertEqual(self.get("/pools")[0], 200)
        self.who = None
        self.assertEqual(self.get("/pools"), (401, ""))


class PathTests(SiteCase):
    """What is there, and what not."""

    def test_nothing_else(self) -> None:
        """What is not served is 404 and says so, in JSON; so is another method."""
        self.assertEqual(self.get("/pools/")[0], 200)
        for path in (
            "/pools//default",
            "/pools/default/tasks",
            "/settings/rbac/profiles",
            "/ui",
            "/%2e",
        ):
            code, body = self.get(path)
            self.assertEqual(code, 404, path)
            self.assertIn("is not served here", body["message"])
        code, body = self.ask("PATCH", "/pools")
        self.assertEqual(code, 404)
        self.assertIn("PATCH /pools is not served here", body["message"])
        self.assertEqual(self.ask("HEAD", "/pools"), (200, ""))

    def test_cluster(self) -> None:
        """The cluster is one healthy node, with the services that are there."""
        code, pools = self.get("/pools")
        self.assertEqual((code, pools["isEnterprise"]), (200, False))
        _, cluster = self.get("/pools/default")
        node = cluster["nodes"][0]
        self.assertEqual((node["status"], node["hostname"]), ("healthy", "kv.example:18091"))
        self.assertEqual(node["configuredHostname"], "kv.example:18091")
        self.assertEqual(node["services"], ["kv", "n1ql"])
        _, services = self.get("/pools/default/nodeServices")
        self.assertEqual(
            services["nodesExt"],
            [
                {
                    "thisNode": True,
                    "services": {
                        "kvSSL": 11207,
                        "kv": 11210,
                        "mgmtSSL": 18091,
                        "n1qlSSL": 18091,
                        "mgmt": 18091,
                        "n1ql": 18091,
                    },
                }
            ],
        )

    def test_set_up(self) -> None:
        """The calls by which testcontainers sets a node up, in their order, succeed."""
        for method, path, form in (
            ("POST", "/node/controller/rename", {"hostname": "172.17.0.2"}),
            ("POST", "/node/controller/setupServices", {"services": "kv,n1ql,index"}),
            ("POST", "/pools/default", {"memoryQuota": "256", "indexMemoryQuota": "256"}),
            ("POST", "/settings/web", {"username": "root", "password": "secret12"}),
            (
                "PUT",
                "/node/controller/setupAlternateAddresses/external",
                {"hostname": "localhost", "kv": "32768", "mgmt": "32769"},
            ),
            ("POST", "/settings/indexes", {"storageMode": "forestdb"}),
        ):
            self.assertEqual(self.ask(method, path, form)[0], 200, path)
        code, body = self.post("/node/controller/setupServices", services="kv,fts")
        self.assertEqual(code, 400)
        self.assertIn("kvproto has no fts", body["errors"]["_"])
        code, body = self.post("/node/controller/setupServices", services="kv,what")
        self.assertEqual((code, body["errors"]["_"]), (400, "Unknown services: ['what']"))


class BoundTests(SiteCase):
    """Nobody can hold it up."""

    def test_bodies(self) -> None:
        """A body that is too long, or does not say how long, is not read."""
        for header, code in (
            (f"Content-Length: {MAX_BODY + 1}", 413),
            ("Transfer-Encoding: chunked", 411),
        ):
            request = f"POST /pools/default/buckets HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n"
            self.assertEqual(self.raw(request.encode())[0], code)

    def test_forms(self) -> None:
        """A form that is none is refused."""
        for form in (b"a=%ff", b"&".join([b"a=1"] * 201), b"\xff=1"):
            code, body = self.post("/pools/default/buckets", form)
            self.assertEqual(code, 400)
            self.assertIn("cannot be read", body["errors"]["_"])

    def test_connections(self) -> None:
        """So many at once; who has waited longest for a request makes room for the next."""
        first = [self.connect() for _ in range(MAX_CONNECTIONS)]
        _, late = self.connect()
        self.assertFalse(late.closed)
        self.assertEqual([there.closed for _, there in first[:2]], [True, False])

    def test_silence(self) -> None:
        """A connection that does not end its request is closed."""
        protocol, transport = self.connect()
        protocol.dataReceived(b"POST /pools/default/buckets HTTP/1.1\r\nContent-Length: 9\r\n\r\n1")
        self.clock.advance(IDLE_SECONDS + 1)
        self.assertTrue(transport.disconnecting)

    def test_host(self) -> None:
        """A host name that is none is not repeated."""
        for given, shown in (
            ("kv.example", "kv.example:18091"),
            ("[::1]:8091", "[::1]:18091"),
            ('"<script>', "127.0.0.1:18091"),
        ):
            _, _, body = self.raw(
                f"GET /pools/default HTTP/1.1\r\nHost: {given}\r\n"
                "Authorization: Basic cm9vdDpzZWNyZXQxMg==\r\n\r\n".encode()
            )
            self.assertIn(f'"hostname": "{shown}"'.encode(), body)

    def test_gone(self) -> None:
        """A client that goes before its answer is there costs nothing."""
        waiting: Deferred[None] = Deferred()
        self.administration.flush_bucket = lambda name: waiting  # type: ignore[method-assign]
        self.administration.settings["default"].flush = True
        protocol, _ = self.connect()
        protocol.dataReceived(
            b"POST /pools/default/buckets/default/controller/doFlush HTTP/1.1\r\nHost: x\r\n"
            b"Content-Length: 0\r\nAuthorization: Basic cm9vdDpzZWNyZXQxMg==\r\n\r\n"
        )
        protocol.connectionLost(Failure(ConnectionLost()))
        self.assertTrue(waiting.called)
        self.assertEqual(self.site.channels, set())

    def test_defect(self) -> None:
        """A defect of ours is 500 and in the log, without a traceback for the client."""
        del self.administration.settings["default"]
        code, body = self.get("/pools/default/buckets/default")
        self.assertEqual(code, 500)
        self.assertIn("internal error", body["errors"]["_"])
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
