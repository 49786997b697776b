"""Users over REST, and what their roles let them do."""

from __future__ import annotations

from typing import Any

from kvproto.dataplane import created_users
from kvproto.management.rights import Role, RoleError, parse_roles, rights_of
from tests.management.support import LIMITED, SiteCase

USERS = "/settings/rbac/users/local"
EXTERNAL = "/settings/rbac/users/external"
GROUPS = "/settings/rbac/groups"
PARAMETERS = ("bucket_name", "scope_name", "collection_name")


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
        """Users of the options are shown, administrators only if asked for; none is changed."""
        names = [user["id"] for user in self.get("/settings/rbac/users")[1]]
        self.assertEqual(names, ["guest"])
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
            ("bob", {"password": "secret12", "groups": ",".join(["g", *"abc"])}, "groups"),
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

    def test_origins(self) -> None:
        """Each role says where it comes from."""
        self.put("bob", password="secret12", roles="admin")
        roles = self.get(f"{USERS}/bob")[1]["roles"]
        self.assertEqual(roles, [{"role": "admin", "origins": [{"type": "user"}]}])
        self.assertEqual(self.get(f"{USERS}/root")[1]["roles"], roles)

    def test_change_password(self) -> None:
        """Who was created may change the own password; users of the options may not."""
        self.put("bob", password="secret12", roles="data_reader[default]", name="Bob")
        change, bob = "/controller/changePassword", ("bob", "secret12")
        code, body = self.ask("POST", change, {"password": "short"}, who=bob)
        self.assertEqual((code, [*body["errors"]]), (400, ["password"]))
        self.assertEqual(self.ask("POST", change, {"password": "secret13"}, who=bob), (200, ""))
        self.assertEqual(self.ask("POST", change, {"password": "secret14"}, who=bob)[0], 401)
        bob = ("bob", "secret13")
        self.assertEqual(self.get("/pools", who=bob)[0], 200)
        self.assertTrue(self.server.users.check("bob", b"secret13"))
        shown = self.get(f"{USERS}/bob")[1]
        self.assertEqual((shown["name"], shown["roles"][0]["role"]), ("Bob", "data_reader"))
        code, body = self.post(change, password="secret13")
        self.assertEqual(code, 400)
        self.assertIn("is a user of --user or --users", str(body))


class ExternalTests(SiteCase):
    """Users that somebody else would let in."""

    def test_life(self) -> None:
        """They are listed beside those of the same name, and nobody logs in as one of them."""
        eve = f"{EXTERNAL}/eve"
        form = {"roles": "data_reader[default],admin", "name": "Eve"}
        self.assertEqual(self.ask("PUT", eve, form), (200, ""))
        self.assertEqual(self.ask("PUT", f"{USERS}/eve", {"password": "secret12"}), (200, ""))
        shown = self.get(eve)[1]
        self.assertEqual((shown["domain"], shown["name"]), ("external", "Eve"))
        self.assertEqual([role["role"] for role in shown["roles"]], ["data_reader", "admin"])
        self.assertNotIn("password_change_date", shown)
        everybody = [(u["id"], u["domain"]) for u in self.get("/settings/rbac/users")[1]]
        self.assertEqual(
            everybody,
            [*((name, "local") for name in ("eve", "guest")), ("eve", "external")],
        )
        self.assertEqual([u["id"] for u in self.get(EXTERNAL)[1]], ["eve"])
        self.assertEqual([u["id"] for u in self.get(USERS)[1]], ["eve", "guest"])
        self.assertEqual(self.get(f"{USERS}/eve")[1]["roles"], [])
        self.assertEqual(self.ask("DELETE", f"{USERS}/eve"), (200, ""))
        self.assertEqual(self.get("/pools", who=("eve", "secret12"))[0], 401)
        self.assertNotIn("eve", self.server.users)
        self.assertEqual(self.ask("DELETE", eve), (200, ""))
        self.assertEqual(self.get(eve), (404, "Unknown user."))
        self.assertEqual(self.ask("DELETE", eve), (404, "User was not found."))

    def test_mistakes(self) -> None:
        """There is no password, and no other domain."""
        for form, field in (
            ({"password": "secret12"}, "password"),
            ({"roles": "king"}, "roles"),
            ({"groups": "nobody"}, "groups"),
        ):
            code, body = self.ask("PUT", f"{EXTERNAL}/eve", form)
            self.assertEqual((code, [*body["errors"]]), (400, [field]))
        for method, path in (
            ("GET", "/settings/rbac/users/other"),
            ("GET", "/settings/rbac/users/other/eve"),
            ("PUT", "/settings/rbac/users/other/eve"),
            ("DELETE", "/settings/rbac/users/other/eve"),
        ):
            self.assertEqual(self.ask(method, path), (404, "Unknown user domain."))

    def test_limit(self) -> None:
        """They count as all others."""
        self.patch(created_users, "MAX_USERS", 2)
        self.assertEqual(self.ask("PUT", f"{EXTERNAL}/one", {})[0], 200)
        self.assertEqual(self.ask("PUT", f"{USERS}/two", {"password": "secret12"})[0], 200)
        self.assertEqual(self.ask("PUT", f"{EXTERNAL}/three", {})[0], 400)
        self.assertEqual(self.ask("PUT", f"{USERS}/three", {"password": "secret12"})[0], 400)
        self.assertEqual(self.ask("PUT", f"{EXTERNAL}/one", {"name": "One"})[0], 200)


class GroupTests(SiteCase):
    """Groups, and what their members have of them."""

    def group(self, name: str, **form: str) -> tuple[int, Any]:
        return self.ask("PUT", f"{GROUPS}/{name}", form)

    def test_life(self) -> None:
        """Created, shown, changed, dropped."""
        made = {"roles": "data_reader[*],admin", "description": "d", "ldap_group_ref": "cn=x"}
        self.assertEqual(self.group("g", **made), (200, ""))
        shown = {
            "id": "g",
            "roles": [
                {"role": "data_reader"} | dict.fromkeys(PARAMETERS, "*"),
                {"role": "admin"},
            ],
            "ldap_group_ref": "cn=x",
            "description": "d",
        }
        self.assertEqual(self.get(f"{GROUPS}/g"), (200, shown))
        self.group("a")
        self.assertEqual([g["id"] for g in self.get(GROUPS)[1]], ["a", "g"])
        self.group("g")
        shown = {"id": "g", "roles": [], "ldap_group_ref": "", "description": ""}
        self.assertEqual(self.get(f"{GROUPS}/g"), (200, shown))
        self.assertEqual(self.ask("DELETE", f"{GROUPS}/g"), (200, ""))
        self.assertEqual(self.get(f"{GROUPS}/g"), (404, "Unknown group."))
        self.assertEqual(self.ask("DELETE", f"{GROUPS}/g"), (404, "Group was not found."))

    def test_members(self) -> None:
        """A member may use what the group may, over KV and REST, as long as it does."""
        self.create_bucket("mine")
        self.create_bucket("yours")
        self.group("g", roles="bucket_admin[mine]")
        self.group("h", roles="data_reader[default],bucket_admin[mine]")
        form = {"password": "secret12", "roles": "data_reader[default]", "groups": "g, h,g"}
        self.assertEqual(self.ask("PUT", f"{USERS}/bob", form), (200, ""))
        shown = self.get(f"{USERS}/bob")[1]
        self.assertEqual(shown["groups"], ["g", "h"])
        g, h = ({"type": "group", "name": name} for name in "gh")
        self.assertEqual(
            [(role["role"], role["bucket_name"], role["origins"]) for role in shown["roles"]],
            [
                ("data_reader", "default", [{"type": "user"}, h]),
                ("bucket_admin", "mine", [g, h]),
            ],
        )
        bob, users = ("bob", "secret12"), self.server.users

        def may() -> tuple[bool, bool, int]:
            path = "/pools/default/buckets/mine/controller/doFlush"
            code, _ = self.ask("POST", path, {}, who=bob)
            users = self.server.users
            return users.may_use("bob", "mine"), users.may_use("bob", "yours"), code

        self.assertEqual(may(), (True, False, 200))
        self.group("h", roles="data_reader[mine],admin")
        self.ask("DELETE", f"{GROUPS}/g")
        self.assertEqual(self.get(f"{USERS}/bob")[1]["groups"], ["h"])
        self.assertEqual(may(), (True, True, 200))
        self.group("h", roles="data_reader[mine]")
        self.assertEqual(may(), (True, False, 403))
        self.ask("DELETE", f"{GROUPS}/h")
        self.assertEqual(may(), (False, False, 404))
        self.assertTrue(self.server.users.may_use("bob", "default"))
        self.assertIsNot(self.server.users, users)

    def test_external(self) -> None:
        """External users are members, too."""
        self.group("g", roles="admin")
        self.ask("PUT", f"{EXTERNAL}/eve", {"groups": "g"})
        roles = self.get(f"{EXTERNAL}/eve")[1]["roles"]
        self.assertEqual(roles, [{"role": "admin", "origins": [{"type": "group", "name": "g"}]}])
        self.ask("DELETE", f"{GROUPS}/g")
        self.assertEqual(self.get(f"{EXTERNAL}/eve")[1]["groups"], [])

    def test_put_replaces(self) -> None:
        """A user that is put without groups is in none."""
        self.group("g", roles="admin")
        self.ask("PUT", f"{USERS}/bob", {"password": "secret12", "groups": "g"})
        self.ask("PUT", f"{USERS}/bob", {"roles": ""})
        self.assertEqual(self.get(f"{USERS}/bob")[1]["groups"], [])

    def test_mistakes(self) -> None:
        """Each has its field."""
        for name, form, field in (
            ("a%20b", {}, "_"),
            ("x" * 129, {}, "_"),
            ("g", {"roles": "king"}, "roles"),
            ("g", {"roles": "data_reader[nowhere]"}, "roles"),
            ("g", {"description": "x" * 1025}, "description"),
            ("g", {"ldap_group_ref": "x" * 1025}, "ldap_group_ref"),
        ):
            code, body = self.group(name, **form)
            self.assertEqual((code, [*body["errors"]]), (400, [field]), (name, form))
        self.assertEqual(self.get(GROUPS), (200, []))

    def test_limits(self) -> None:
        """Of groups, and of groups of a user."""
        self.patch(created_users, "MAX_GROUPS", 3)
        self.patch(created_users, "MAX_GROUPS_OF_USER", 2)
        self.assertEqual([self.group(name)[0] for name in "abcda"], [200, 200, 200, 400, 200])
        form = {"password": "secret12", "groups": "a,b,c"}
        self.assertEqual(self.ask("PUT", f"{USERS}/bob", form)[0], 400)
        form["groups"] = "b,c"
        self.assertEqual(self.ask("PUT", f"{USERS}/bob", form)[0], 200)

    def test_others(self) -> None:
        """Only administrators see and change them."""
        self.group("g")
        self.who = LIMITED
        for method, path, form in (
            ("GET", GROUPS, None),
            ("GET", f"{GROUPS}/g", None),
            ("PUT", f"{GROUPS}/g", {"roles": "admin"}),
            ("DELETE", f"{GROUPS}/g", None),
            ("GET", "/settings/rbac/roles", None),
            ("PUT", f"{EXTERNAL}/eve", {"roles": "admin"}),
            ("GET", EXTERNAL, None),
        ):
            self.assertEqual(self.ask(method, path, form)[0], 403, path)


class RoleTests(SiteCase):
    """Roles as text, and rights."""

    def test_all(self) -> None:
        """All roles are listed; each that is can be given as it is listed."""
        code, rows = self.get("/settings/rbac/roles")
        self.assertEqual(code, 200)
        self.assertEqual(rows[0]["role"], "admin")
        words = []
        for row in rows:
            self.assertTrue(row["name"] and row["desc"])
            bucket = row.get("bucket_name")
            self.assertEqual(bucket, "*" if "scope_name" in row else bucket)
            words.append(f"{row['role']}[{bucket}]" if bucket else row["role"])
        self.assertEqual(len(set(words)), len(words))
        self.assertEqual(len(parse_roles(",".join(words), [])), len(words))

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

    def test_shown(self) -> None:
        """A role shows what it is given for, as far as it can be given for it."""
        for text, shown in (
            ("admin", ()),
            ("bucket_admin[b]", ("b",)),
            ("bucket_admin[*]", ("*",)),
            ("scope_admin[b]", ("b", "*")),
            ("scope_admin[b:s]", ("b", "s")),
            ("data_reader[*]", ("*", "*", "*")),
            ("data_reader[b]", ("b", "*", "*")),
            ("data_reader[b:s:c]", ("b", "s", "c")),
        ):
            [role] = parse_roles(text)
            row = {"role": role.name, **dict(zip(PARAMETERS, shown, strict=False))}
            self.assertEqual(role.to_json(), row)

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
