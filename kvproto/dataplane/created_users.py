"""Users that are created while the service serves, beside those of the options and the users file.

The others win: a user that is in both is what the options or the file say.  Groups give their
members roles.  External users are those that somebody else would let in: they have roles, and no
password, so that nobody logs in as one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from twisted.internet.defer import maybeDeferred

from kvproto.dataplane.users_reload import UsersReload
from kvproto.errors import CommandError, LocalProtocolError
from kvproto.server import KVServer, UserTable, hash_password
from kvproto.server.users_file import UserRecord, dump_user, load_user

__all__ = [
    "MAX_GROUPS",
    "MAX_GROUPS_OF_USER",
    "MAX_USERS",
    "CreatedGroup",
    "CreatedUser",
    "CreatedUsers",
    "Given",
]

MAX_USERS = 200

MAX_GROUPS = 200

MAX_GROUPS_OF_USER = 20

Run = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Given:
    """What is given to a user, or to the members of a group.

    Attributes:
        roles: As asked for, e.g. ``("bucket_full_access[default]",)``; kept to be shown.
        buckets: That may be used therefore; None for all.
    """

    roles: tuple[str, ...] = ()
    buckets: tuple[str, ...] | None = ()


@dataclass(frozen=True, slots=True)
class CreatedGroup:
    """A group that was created over REST.

    Attributes:
        given: What its members have.
        description: For people.
        ldap_group: Kept to be shown.
    """

    given: Given
    description: str = ""
    ldap_group: str = ""


@dataclass(frozen=True, slots=True)
class CreatedUser:
    """A user that was created over REST.

    Attributes:
        given: What it has of its own.
        name: How people call it.
        groups: Names of the groups whose member it is.
        hashes: Of its password, by digest; none of an external user.
        changed: When its password was last changed, in unix seconds.
    """

    given: Given = Given()
    name: str = ""
    groups: tuple[str, ...] = ()
    hashes: Mapping[str, Any] | None = None
    changed: int = 0


class CreatedUsers:
    """The created users of a server, and the table that it works with.

    Args:
        server: Whose they are.
        users: Reads the users file again and again; what was created is added each time.
        run: Runs a function in a thread: hashing takes long on purpose.

    Attributes:
        listed: The users of the options and of the users file.
        external: External users, by name.
        groups: Groups, by name.
    """

    def __init__(self, server: KVServer, users: UsersReload, run: Run) -> None:
        self._server = server
        self._run = run
        self._created: dict[str, CreatedUser] = {}
        self.external: dict[str, CreatedUser] = {}
        self.groups: dict[str, CreatedGroup] = {}
        self.listed = server.users
        users.amend = self.amend

    def __iter__(self) -> Iterator[str]:
        return iter(self._created)

    def __len__(self) -> int:
        return len(self._created)

    def get(self, name: str) -> CreatedUser | None:
        """Return a created user, None where the options or the file have one of this name."""
        return None if name in self.listed else self._created.get(name)

    def given(self, user: CreatedUser) -> Iterator[tuple[str, Given]]:
        """Yield what a user has: of its own, named ``""``, and by each of its groups."""
        yield "", user.given
        for group in user.groups:
            yield group, self.groups[group].given

    # -- users ------------------------------------------------------------------------

    async def put(self, name: str, password: str | None, user: CreatedUser) -> bool:
        """Create a user, or change one; see `Administration.put_user`.

        Returns:
            Whether it is new.
        """
        self._need_unlisted(name, "changed")
        before = self._created.get(name)
        self._need_room(before)
        self._need_groups(user)
        if password is not None:
            hashes, changed = await self._hashed(password), int(self._server.now())
        elif before is not None:
            hashes, changed = before.hashes, before.changed
        else:
            raise CommandError("bad-password", "The password must be given for a new user.")
        self._created[name] = replace(user, hashes=hashes, changed=changed)
        self._changed()
        return before is None

    def put_external(self, name: str, user: CreatedUser) -> bool:
        """Create an external user, or change one; see `Administration.put_user`.

        Returns:
            Whether it is new.
        """
        before = self.external.get(name)
        self._need_room(before)
        self._need_groups(user)
        self.external[name] = user
        return before is None

    async def change_password(self, name: str, password: str) -> None:
        """Give a created user another password; see `Administration.change_password`."""
        self._need_unlisted(name, "changed")
        user = self._created.get(name)
        if user is None:
            raise CommandError("unknown-user", "User was not found.")
        await self.put(name, password, user)

    def _need_room(self, before: CreatedUser | None) -> None:
        if before is None and len(self._created) + len(self.external) >= MAX_USERS:
            raise CommandError("limit", f"Cannot create more than {MAX_USERS} users")

    def _need_groups(self, user: CreatedUser) -> None:
        missing = [group for group in user.groups if group not in self.groups]
        if missing:
            raise CommandError("unknown-group", f"Groups do not exist: {', '.join(missing)}")
        if len(user.groups) > MAX_GROUPS_OF_USER:
            raise CommandError("limit", f"A user has at most {MAX_GROUPS_OF_USER} groups")

    async def _hashed(self, password: str) -> Any:
        try:
            return await maybeDeferred(self._run, hash_password, password)
        except LocalProtocolError as error:
            raise CommandError("bad-password", str(error)) from None

    def drop(self, name: str, *, external: bool = False) -> None:
        """Forget a user; see `Administration.drop_user`."""
        users = self.external if external else self._created
        if not external:
            self._need_unlisted(name, "removed")
        if users.pop(name, None) is None:
            raise CommandError("unknown-user", "User was not found.")
        self._changed()

    def _need_unlisted(self, name: str, done: str) -> None:
        if name in self.listed:
            raise CommandError(
                "exists", f"{name!r} is a user of --user or --users and cannot be {done} here"
            )

    # -- groups -----------------------------------------------------------------------

    def put_group(self, name: str, group: CreatedGroup) -> bool:
        """Create a group, or change one; see `Administration.put_group`.

        Returns:
            Whether it is new.
        """
        new = name not in self.groups
        if new and len(self.groups) >= MAX_GROUPS:
            raise CommandError("limit", f"Cannot create more than {MAX_GROUPS} groups")
        self.groups[name] = group
        self._changed()
        return new

    def drop_group(self, name: str) -> None:
        """Forget a group, and that users were its members; see `Administration.drop_group`."""
        if self.groups.pop(name, None) is None:
            raise CommandError("unknown-group", "Group was not found.")
        for users in (self._created, self.external):
            for user, there in users.items():
                if name in there.groups:
                    left = tuple(group for group in there.groups if group != name)
                    users[user] = replace(there, groups=left)
        self._changed()

    # -- the table --------------------------------------------------------------------

    def _changed(self) -> None:
        self._server.users = self.amend(self.listed)

    def amend(self, users: UserTable) -> UserTable:
        """Return a table of users with those that were created."""
        self.listed = users
        records = {
            name: UserRecord(user.hashes, self._buckets(user))
            for name, user in self._created.items()
            if name not in users and user.hashes is not None
        }
        return users.extended(records, self._server.hashing) if records else users

    def _buckets(self, user: CreatedUser) -> tuple[str, ...] | None:
        """Return the buckets that a user may use, those of its groups included."""
        found: set[str] = set()
        for _, given in self.given(user):
            if given.buckets is None:
                return None
            found.update(given.buckets)
        return tuple(sorted(found))

    # -- keeping ----------------------------------------------------------------------

    def describe(self) -> Callable[[], dict[str, Any]]:
        """Return what makes the description to keep: of the users of now, in any thread."""
        users, external, groups = dict(self._created), dict(self.external), dict(self.groups)

        def described() -> dict[str, Any]:
            return {
                "users": {name: _dump(user) for name, user in users.items()},
                "external_users": {name: _dump(user) for name, user in external.items()},
                "groups": {
                    name: {
                        "roles": group.given.roles,
                        "buckets": group.given.buckets,
                        "description": group.description,
                        "ldap_group": group.ldap_group,
                    }
                    for name, group in groups.items()
                },
            }

        return described

    def restore(self, described: dict[str, Any]) -> None:
        """Take what was described; what makes no sense raises whatever comes of it."""
        for name, row in described.get("groups", {}).items():
            given = Given(tuple(row["roles"]), _names(row["buckets"]))
            self.groups[name] = CreatedGroup(given, row["description"], row["ldap_group"])
        for name, row in described.get("users", {}).items():
            record = load_user(row["record"])
            self._created[name] = _load(row, record.buckets, record.hashes)
        for name, row in described.get("external_users", {}).items():
            self.external[name] = _load(row, _names(row["buckets"]), None)
            self._buckets(self.external[name])  # raises where a group is not there
        self._changed()


def _dump(user: CreatedUser) -> dict[str, Any]:
    kept: dict[str, Any] = {
        "roles": user.given.roles,
        "name": user.name,
        "groups": user.groups,
        "changed": user.changed,
    }
    if user.hashes is None:
        return kept | {"buckets": user.given.buckets}
    return kept | {"record": dump_user(UserRecord(user.hashes, user.given.buckets))}


def _load(
    row: Mapping[str, Any], buckets: tuple[str, ...] | None, hashes: Mapping[str, Any] | None
) -> CreatedUser:
    given = Given(tuple(row["roles"]), buckets)
    return CreatedUser(given, row["name"], tuple(row.get("groups", ())), hashes, row["changed"])


def _names(names: Any) -> tuple[str, ...] | None:
    return None if names is None else tuple(names)
