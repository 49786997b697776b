"""Users: those that were created here can be changed; those of the options are only shown."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from kvproto.management.answers import Answer, Call, Refused, errors, ok
from kvproto.management.part import Part
from kvproto.management.rights import Role, RoleError, parse_roles, rights_of

__all__ = ["Users"]

SHORTEST_PASSWORD = 6
"""Characters; Couchbase's default policy."""

TOO_SHORT = f"The password must be at least {SHORTEST_PASSWORD} characters long."

MAX_DISPLAY_NAME = 256
"""Characters."""

MAX_NAME = 128
"""Characters; Couchbase's."""

_FORBIDDEN = frozenset('()<>@,;:\\"/[]?={}')
"""Characters that no name of a user has, nor any that cannot be printed (Couchbase's rule)."""


class Users(Part):
    """Paths about users."""

    def routes(self) -> Iterable[tuple[str, str, Any]]:
        """Return method, path and handler of each route."""
        one = "/settings/rbac/users/local/{user}"
        return (
            ("GET", "/settings/rbac/users", self._list),
            ("GET", "/settings/rbac/users/local", self._list),
            ("GET", one, self._get),
            ("PUT", one, self._put),
            ("DELETE", one, self._drop),
        )

    def _list(self, call: Call) -> Answer:
        self.administrator(call, "admin.users!read")
        names = {*self.administration.users.listed, *self.administration.users}
        return ok([self._describe(name) for name in sorted(names)])

    def _get(self, call: Call) -> Answer:
        self.administrator(call, "admin.users!read")
        name = call.words["user"]
        users = self.administration.users
        if name not in users.listed and users.get(name) is None:
            raise Refused(ok("Unknown user.", 404))
        return ok(self._describe(name))

    def _describe(self, name: str) -> dict[str, Any]:
        users = self.administration.users
        shown: dict[str, Any] = {"id": name, "domain": "local", "groups": [], "external_groups": []}
        created = users.get(name)
        if created is None:
            buckets = users.listed.buckets_of(name)
            roles = [Role("admin")]
            if buckets is not None:
                roles = [Role("bucket_full_access", bucket) for bucket in buckets]
        else:
            roles = list(parse_roles(",".join(created.roles)))
            shown["name"] = created.name
            changed = datetime.fromtimestamp(created.changed, UTC)
            shown["password_change_date"] = changed.strftime("%Y-%m-%dT%H:%M:%S.000Z")
        shown["roles"] = [role.to_json() for role in roles]
        return shown

    async def _put(self, call: Call) -> Answer:
        self.administrator(call, "admin.users!write")
        name, password = call.words["user"], call.form.get("password")
        found = {}
        if not _is_name(name):
            found["_"] = (
                'The username must not contain spaces, control or any of ()<>@,;:\\"/[]?={} '
                f"characters and must be valid UTF8, and is at most {MAX_NAME} characters long."
            )
        if password is not None and len(password) < SHORTEST_PASSWORD:
            found["password"] = TOO_SHORT
        if len(call.form.get("name", "")) > MAX_DISPLAY_NAME:
            found["name"] = f"The name must be at most {MAX_DISPLAY_NAME} characters long."
        if call.form.get("groups"):
            found["groups"] = "kvproto has no groups: give the user its roles"
        roles: tuple[Role, ...] = ()
        try:
            roles = parse_roles(call.form.get("roles", ""), self.server.buckets)
        except RoleError as error:
            found["roles"] = (
                "Cannot assign roles to user because the following roles are unknown, malformed "
                f"or role parameters are undefined: [{','.join(error.args[0])}]"
            )
        if found:
            raise errors(found)
        rights = rights_of(roles)
        buckets = None if rights.buckets is None else tuple(sorted(rights.buckets))
        await self.administration.put_user(
            name, password, tuple(map(str, roles)), buckets, call.form.get("name", "")
        )
        return ok("")

    async def _drop(self, call: Call) -> Answer:
        self.administrator(call, "admin.users!write")
        await self.administration.drop_user(call.words["user"])
        return ok("")


def _is_name(name: str) -> bool:
    printable = name.isprintable() and " " not in name
    return printable and 0 < len(name) <= MAX_NAME and not _FORBIDDEN & set(name)
