"""Groups of users, which have what their group has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kvproto.dataplane import CreatedGroup
from kvproto.errors import CommandError
from kvproto.management.answers import Answer, Call, Refused, errors, ok
from kvproto.management.part import Part
from kvproto.management.rights import given_roles
from kvproto.management.users import BAD_NAME, given_by, is_name

__all__ = ["Groups"]

MAX_DESCRIPTION = 1024
"""Characters, of the name of a group at an LDAP server too."""


class Groups(Part):
    """Paths about groups."""

    def routes(self) -> Iterable[tuple[str, str, Any]]:
        """Return method, path and handler of each route."""
        one = "/settings/rbac/groups/{group}"
        return (
            ("GET", "/settings/rbac/groups", self._list),
            ("GET", one, self._get),
            ("PUT", one, self._put),
            ("DELETE", one, self._drop),
        )

    def _list(self, call: Call) -> Answer:
        self.administrator(call, "admin.users!read")
        return ok([_describe(*row) for row in sorted(self.administration.users.groups.items())])

    def _get(self, call: Call) -> Answer:
        self.administrator(call, "admin.users!read")
        name = call.words["group"]
        group = self.administration.users.groups.get(name)
        if group is None:
            raise Refused(ok("Unknown group.", 404))
        return ok(_describe(name, group))

    async def _put(self, call: Call) -> Answer:
        self.administrator(call, "admin.users!write")
        name, form = call.words["group"], call.form
        found: dict[str, str] = {}
        if not is_name(name):
            found["_"] = f"The group name {BAD_NAME}"
        for field in ("description", "ldap_group_ref"):
            if len(form.get(field, "")) > MAX_DESCRIPTION:
                found[field] = f"The value must be at most {MAX_DESCRIPTION} characters long."
        given = given_by(call, self.server.buckets, found)
        if found:
            raise errors(found)
        group = CreatedGroup(given, form.get("description", ""), form.get("ldap_group_ref", ""))
        await self.administration.put_group(name, group)
        return ok("")

    async def _drop(self, call: Call) -> Answer:
        self.administrator(call, "admin.users!write")
        try:
            await self.administration.drop_group(call.words["group"])
        except CommandError as error:
            if error.code == "unknown-group":
                raise Refused(ok(error.reason, 404)) from None
            raise
        return ok("")


def _describe(name: str, group: CreatedGroup) -> dict[str, Any]:
    return {
        "id": name,
        "roles": [role.to_json() for role in given_roles(group.given.roles)],
        "ldap_group_ref": group.ldap_group,
        "description": group.description,
    }
