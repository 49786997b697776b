"""Users: those that were created here can be changed; those of the options are only shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from kvproto.dataplane import CreatedUser, Given
from kvproto.management.answers import Answer, Call, Refused, errors, ok
from kvproto.management.part import Part
from kvproto.management.rights import Role, RoleError, given_roles, parse_roles, rights_of
from kvproto.management.roles import describe_roles

__all__ = ["BAD_NAME", "Users", "given_by", "is_name"]

LOCAL, EXTERNAL = "local", "external"
"""Domains of users: those that log in here, and those that somebody else would let in."""

_ITSELF = {"type": "user"}
"""Where a role comes from that a user has of its own."""

SHORTEST_PASSWORD = 6
"""Characters; Couchbase's default policy."""

TOO_SHORT = f"The password must be at least {SHORTEST_PASSWORD} characters long."

_NOT_OURS = "Password is not allowed for external users"

MAX_DISPLAY_NAME = 256
"""Characters."""

MAX_NAME = 128
"""Characters; Couchbase's."""

BAD_NAME = (
    'must not contain spaces, control or any of ()<>@,;:\\"/[]?={} characters and must be valid '
    f"UTF8, and is at most {MAX_NAME} characters long."
)

_FORBIDDEN = frozenset('()<>@,;:\\"/[]?={}')
"""Characters that no name of a user has, nor any that cannot be printed (Couchbase's rule)."""


class Users(Part):
    """Paths about users."""

    def routes(self) -> Iterable[tuple[str, str, Any]]:
        """Return method, path and handler of each route."""
        one = "/settings/rbac/users/{domain}/{user}"
        return (
            ("GET", "/settings/rbac/roles", self._roles),
            ("GET", "/settings/rbac/users", self._list),
            ("GET", "/settings/rbac/users/{domain}", self._list),
            ("GET", one, self._get),
            ("PUT", one, self._put),
            ("DELETE", one, self._drop),
            ("POST", "/controller/changePassword", self._change_password),
        )

    def _roles(self, call: Call) -> Answer:
        self.administrator(call, "admin.security!read")
        return ok(describe_roles())

    def _list(self, call: Call) -> Answer:
        self.administrator(call, "admin.users!read")
        users = self.administration.users
        domains = [_domain(call)] if "domain" in call.words else [LOCAL, EXTERNAL]
        rows = []
        if LOCAL in domains:
            # Whoever may do everything by the options is no user of this kind, as at Couchbase.
            plain = {name for name in users.listed if users.listed.buckets_of(name) is not None}
            rows += [self._describe(name) for name in sorted({*plain, *users})]
        if EXTERNAL in domains:
            found = sorted(users.external.items())
            rows += [self._describe_created(name, EXTERNAL, user) for name, user in found]
        return ok(rows)

    def _get(self, call: Call) -> Answer:
        self.administrator(call, "admin.users!read")
        name = call.words["user"]
        users = self.administration.users
        if _domain(call) == EXTERNAL:
            if name not in users.external:
                raise Refused(ok("Unknown user.", 404))
            return ok(self._describe_created(name, EXTERNAL, users.external[name]))
        if name not in users.listed and users.get(name) is None:
            raise Refused(ok("Unknown user.", 404))
        return ok(self._describe(name))

    def _describe(self, name: str) -> dict[str, Any]:
        """Describe a local user."""
        users = self.administration.users
        created = users.get(name)
        if created is not None:
            return self._describe_created(name, LOCAL, created)
        buckets = users.listed.buckets_of(name)
        roles = [Role("admin")]
        if buckets is not None:
            roles = [Role("bucket_full_access", bucket) for bucket in buckets]
        return _row(name, LOCAL, {role: [_ITSELF] for role in roles})

    def _describe_created(self, name: str, domain: str, user: CreatedUser) -> dict[str, Any]:
        origins: dict[Role, list[dict[str, str]]] = {}
        for group, given in self.administration.users.given(user):
            origin = {"type": "group", "name": group} if group else _ITSELF
            for role in given_roles(given.roles):
                origins.setdefault(role, []).append(origin)
        shown = _row(name, domain, origins) | {"groups": user.groups, "name": user.name}
        if user.changed:
            changed = datetime.fromtimestamp(user.changed, UTC)
            shown["password_change_date"] = changed.strftime("%Y-%m-%dT%H:%M:%S.000Z")
        return shown

    async def _put(self, call: Call) -> Answer:
        self.administrator(call, "admin.users!write")
        name, domain = call.words["user"], _domain(call)
        password = call.form.get("password")
        found: dict[str, str] = {}
        if not is_name(name):
            found["_"] = f"The username {BAD_NAME}"
        if password is not None and domain == EXTERNAL:
            found["password"] = _NOT_OURS
        elif password is not None and len(password) < SHORTEST_PASSWORD:
            found["password"] = TOO_SHORT
        if len(call.form.get("name", "")) > MAX_DISPLAY_NAME:
            found["name"] = f"The name must be at most {MAX_DISPLAY_NAME} characters long."
        given = given_by(call, self.server.buckets, found)
        if found:
            raise errors(found)
        words = (word.strip() for word in call.form.get("groups", "").split(","))
        groups = tuple(dict.fromkeys(word for word in words if word))
        user = CreatedUser(given, call.form.get("name", ""), groups)
        if domain == EXTERNAL:
            await self.administration.put_external_user(name, user)
        else:
            await self.administration.put_user(name, password, user)
        return ok("")

    async def _drop(self, call: Call) -> Answer:
        self.administrator(call, "admin.users!write")
        external = _domain(call) == EXTERNAL
        await self.administration.drop_user(call.words["user"], external=external)
        return ok("")

    async def _change_password(self, call: Call) -> Answer:
        """Change the password of whoever asks."""
        password = call.form.get("password", "")
        if len(password) < SHORTEST_PASSWORD:
            raise errors({"password": TOO_SHORT})
        await self.administration.change_password(call.user, password)
        return Answer()


def _domain(call: Call) -> str:
    """Return the domain that a path names."""
    domain = call.words["domain"]
    if domain not in {LOCAL, EXTERNAL}:
        raise Refused(ok("Unknown user domain.", 404))
    return domain


def _row(
    name: str, domain: str, roles: Mapping[Role, Sequence[Mapping[str, str]]]
) -> dict[str, Any]:
    return {
        "id": name,
        "domain": domain,
        "groups": (),
        "external_groups": (),
        "roles": [role.to_json() | {"origins": origins} for role, origins in roles.items()],
    }


def given_by(call: Call, buckets: Iterable[str], found: dict[str, str]) -> Given:
    """Read the roles of a form.

    Args:
        call: What was sent.
        buckets: Names of those that there are.
        found: Gets what is wrong with them.
    """
    try:
        roles = parse_roles(call.form.get("roles", ""), buckets)
    except RoleError as error:
        found["roles"] = (
            "Cannot assign roles to user because the following roles are unknown, malformed "
            f"or role parameters are undefined: [{','.join(error.args[0])}]"
        )
        return Given()
    rights = rights_of(roles)
    used = None if rights.buckets is None else tuple(sorted(rights.buckets))
    return Given(tuple(map(str, roles)), used)


def is_name(name: str) -> bool:
    """Return whether a user, or a group, can be called so."""
    printable = name.isprintable() and " " not in name
    return printable and 0 < len(name) <= MAX_NAME and not _FORBIDDEN & set(name)
