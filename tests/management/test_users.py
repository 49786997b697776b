"""Users over REST, and what their roles let them do."""

from __future__ import annotations

from kvproto.dataplane import created_users
from kvproto.management.rights import Role, RoleError, parse_roles, rights_of
from tests.management.support import SiteCase

USERS = "/settings/rbac/users/local"


class UserTests(SiteCase):
    """Created, changed, shown, dropped."""

    def put(self, who_: str, /, **form: str) -> tuple[int, object]:
        return self.ask("PUT", f"{USERS}/{who_}", form)

    def test_life(self) -> None:
        """A user can log in as soon as it is there, and no longer when it is dropped."""
        self.assertEqual(
            self.put("bob", password="swordfish", roles="data_reader[default]", name="Bob"),
            (200, ""),
        )
        self.assertTrue(self.server.users.check("bob", b"swordfish"))
        self.assertTrue(self.server.users.may_use("bob", "default"))
        self.assertFalse(self.server.users.may_use("bob", "other"))
        code, shown = self.get(f"{USERS}/bob")
        self.assertEqual((code, shown["id"], shown["name"]), (200, "bob", "Bob"))
        self.assertEqual([role["role"] for role in shown["roles"]], ["data_reader"])
        self.assertEqual(shown["roles"][0]["bucket_name"], "default")
        self.assertEqual(self.get("/pools", who=("bob", "swordfish"))[0], 200)
        # Without a password the old one stays.
        self.put("bob", roles="admin")
        self.assertTrue(self.server.users.check("bob", b"swordfish"))
        self.assertTrue(self.server.users.may_use("bob", "other"))
        self.assertEqual(self.create_bucket()[0], 202)
        self.assertEqual(self.ask("DELETE", f"{USERS}/bob"), (200, ""))
        self.assertEqual(self.get("/pools", who=("bob", "swordfish"))[0], 401)
        self.assertEqual(self.get(f"{USERS}/bob"), (404, "Unknown user."))
        self.assertEqual(self.ask("DELETE", f"{USERS}/bob"), (404, "User was not found."))

    def test_of_options(self) -> None:
        """Users of the options are shown; neither changed nor removed."""
        names = [user["id"] for user in self.get("/settings/rbac/users")[1]]
        self.assertEqual(names, ["guest", "root"])
        self.assertEqual(self.get(f"{USERS}/root")[1]["roles"][0]["role"], "admin")
        guest = self.get(f"{USERS}/guest")[1]["roles"][0]
        self.assertEqual((guest["role"], guest["bucket_name"]), ("bucket_full_access", "default"))
        for code, body in (
            self.put("root", password="another1", roles="admin"),
            self.ask("DELETE", f"{USERS}/root"),
        ):
            self.assertEqual(code, 400)
            self.assertIn("is a user of --user or --users", str(body))
        self.assertTrue(self.server.users.check("root", b"secret12"))

    def test_mistakes(self) -> None:
        """Each has its field and its sentence; nothing is created."""
        for name, form, field in (
            ("bob", {"password": "short", "roles": ""}, "password"),
            ("bob", {"roles": "admin"}, "password"),
            ("bob", {"password": "secret12", "roles": "king"}, "roles"),
            ("bob", {"password": "secret12", "roles": "data_reader[nowhere]"}, "roles"),
            ("bob", {"password": "secret12", "roles": "admin[default]"}, "roles"),
            ("bob", {"password": "secret12", "roles": "data_reader"}, "roles"),
            ("bob", {"password": "secret12", "groups": "g"}, "groups"),
            ("bob", {"password": "secret12", "name": "x" * 257}, "name"),
            (
                "bob",
                {"password": "secret12", "roles": f"data_reader[default:{'x' * 700}]"},
                "roles",
            ),
            ("a%20b", {"password": "secret12"}, "_"),
            ("a%2Fb", {"password": "secret12"}, "_"),
            ("x" * 129, {"password": "secret12"}, "_"),
            ("bob", {"password": "\x00secret"}, "password"),
        ):
            code, body = self.put(name, **form)
            assert isinstance(body, dict)
            self.assertEqual((code, [*body["errors"]]), (400, [field]), (name, form))
        self.assertEqual([*self.administration.users], [])

    def test_limit(self) -> None:
        """There is a number that nobody gets beyond; changing goes on."""
        self.patch(created_users, "MAX_USERS", 1)
        self.assertEqual(self.put("one", password="secret12")[0], 200)
        self.assertEqual(self.put("two", password="secret12")[0], 400)
        self.assertEqual(self.put("one", password="secret13")[0], 200)

    def test_manager(self) -> None:
        """A bucket's administrator changes what is in that bucket, and nothing else."""
        self.create_bucket("mine")
        self.put("bob", password="secret12", roles="bucket_admin[mine]")
        self.who = ("bob", "secret12")
        mine = "/pools/default/buckets/mine"
        self.assertEqual(self.post(f"{mine}/scopes", name="s")[0], 200)
        self.assertEqual(self.post(f"{mine}/controller/doFlush")[0], 200)
        self.assertEqual(self.ask("DELETE", mine)[0], 403)
        self.assertEqual(self.post("/pools/default/buckets/default/scopes", name="s")[0], 404)
        self.assertEqual(self.create_bucket("more")[0], 403)

    def test_dropped_bucket(self) -> None:
        """A role of a bucket that is gone is still shown, and harms nobody."""
        self.create_bucket("gone")
        self.put("bob", password="secret12", roles="data_reader[gone]")
        self.ask("DELETE", "/pools/default/buckets/gone")
        self.assertEqual(self.get(f"{USERS}/bob")[1]["roles"][0]["bucket_name"], "gone")
        self.assertEqual(self.get("/pools/default/buckets", who=("bob", "secret12")), (200, []))

    def test_reload(self) -> None:
        """When the users file is read again, created users stay; those of the file win."""
        from kvproto.server import UserTable

        self.put("bob", password="secret12", roles="admin")
        table = UserTable.of_passwords({"bob": "of-the-file"}, {"bob": ("default",)}, iterations=1)
        self.server.users = self.administration.users.amend(table)
        self.assertTrue(self.server.users.check("bob", b"of-the-file"))
        self.assertEqual(self.get("/pools", who=("bob", "secret12"))[0], 401)
        code, pools = self.get("/pools", who=("bob", "of-the-file"))
        self.assertEqual((code, pools["isAdminCreds"]), (200, False))


class RoleTests(SiteCase):
    """Roles as text, and rights."""

    def test_read(self) -> None:
        """Names of clusters and of buckets, with scope and collection."""
        self.assertEqual(
            parse_roles("ro_admin, data_reader[*],data_writer[b:s:c]", ["b"]),
            (Role("ro_admin"), Role("data_reader", "*"), Role("data_writer", "b", "s", "c")),
        )
        self.assertEqual(parse_roles("", []), ())
        for wrong in ("data_reader[]", "data_reader[b:s:c:d]", "[b]", "data_reader[b", "Admin"):
            with self.assertRaises(RoleError):
                parse_roles(wrong, ["b"])
        with self.assertRaises(RoleError):
            parse_roles(",".join(["admin"] * 201), [])

    def test_rights(self) -> None:
        """What roles allow."""
        for text, administrator, buckets, managed in (
            ("admin", True, None, None),
            ("ro_admin", False, set(), set()),
            ("data_reader[b]", False, {"b"}, set()),
            ("data_reader[*]", False, None, set()),
            ("bucket_admin[b],data_reader[c]", False, {"b", "c"}, {"b"}),
            ("scope_admin[*]", False, None, None),
        ):
            rights = rights_of(parse_roles(text))
            self.assertEqual(
                (rights.administrator, rights.buckets, rights.managed),
                (administrator, buckets, managed),
                text,
            )
