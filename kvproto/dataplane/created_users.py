"""Users that are created while the service serves, beside those of the options and the users file.

The others win: a user that is in both is what the options or the file say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import maybeDeferred

from kvproto.dataplane.users_reload import UsersReload
from kvproto.errors import CommandError, LocalProtocolError
from kvproto.server import KVServer, UserTable, hash_password
from kvproto.server.users_file import UserRecord, dump_user, load_user

__all__ = ["MAX_USERS", "CreatedUser", "CreatedUsers"]

MAX_USERS = 200

Run = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class CreatedUser:
    """A user that was created over REST.

    Attributes:
        record: Its password's hashes, and the buckets it may use.
        roles: As asked for, e.g. ``["bucket_full_access[default]"]``.
        name: How people call it.
        changed: When its password was last changed, in unix seconds.
    """

    record: UserRecord
    roles: tuple[str, ...] = ()
    name: str = ""
    changed: int = 0


class CreatedUsers:
    """The created users of a server, and the table that it works with.

    Args:
        server: Whose they are.
        users: Reads the users file again and again; what was created is added each time.
        run: Runs a function in a thread: hashing takes long on purpose.

    Attributes:
        listed: The users of the options and of the users file.
    """

    def __init__(self, server: KVServer, users: UsersReload, run: Run) -> None:
        self._server = server
        self._run = run
        self._created: dict[str, CreatedUser] = {}
        self.listed = server.users
        users.amend = self.amend

    def __iter__(self) -> Iterator[str]:
        return iter(self._created)

    def __len__(self) -> int:
        return len(self._created)

    def get(self, name: str) -> CreatedUser | None:
        """Return a created user, None where the options or the file have one of this name."""
        return None if name in self.listed else self._created.get(name)

    async def put(
        self,
        name: str,
        password: str | None,
        roles: tuple[str, ...],
        buckets: tuple[str, ...] | None,
        display: str,
    ) -> bool:
        """Create a user, or change one; see `Administration.put_user`.

        Returns:
            Whether it is new.
        """
        self._need_unlisted(name, "changed")
        before = self._created.get(name)
        if before is None and len(self._created) >= MAX_USERS:
            raise CommandError("limit", f"Cannot create more than {MAX_USERS} users")
        if password is not None:
            hashes, changed = await self._hashed(password), int(self._server.now())
        elif before is not None:
            hashes, changed = before.record.hashes, before.changed
        else:
            raise CommandError("bad-password", "The password must be given for a new user.")
        record = UserRecord(hashes, buckets)
        self._created[name] = CreatedUser(record, roles, display, changed)
        self._changed()
        return before is None

    async def _hashed(self, password: str) -> Any:
        try:
            return await maybeDeferred(self._run, hash_password, password)
        except LocalProtocolError as error:
            raise CommandError("bad-password", str(error)) from None

    def drop(self, name: str) -> None:
        """Forget a user; see `Administration.drop_user`."""
        self._need_unlisted(name, "removed")
        if self._created.pop(name, None) is None:
            raise CommandError("unknown-user", "User was not found.")
        self._changed()

    def _need_unlisted(self, name: str, done: str) -> None:
        if name in self.listed:
            raise CommandError(
                "exists", f"{name!r} is a user of --user or --users and cannot be {done} here"
            )

    def _changed(self) -> None:
        self._server.users = self.amend(self.listed)

    def amend(self, users: UserTable) -> UserTable:
        """Return a table of users with those that were created."""
        self.listed = users
        records = {name: user.record for name, user in self._created.items() if name not in users}
        return users.extended(records, self._server.hashing) if records else users

    def describe(self) -> Callable[[], dict[str, Any]]:
        """Return what makes the description to keep: of the users of now, in any thread."""
        users = dict(self._created)

        def described() -> dict[str, Any]:
            return {
                name: {
                    "record": dump_user(user.record),
                    "roles": user.roles,
                    "name": user.name,
                    "changed": user.changed,
                }
                for name, user in users.items()
            }

        return described

    def restore(self, described: dict[str, Any]) -> None:
        """Take the users of a description; what makes no sense raises whatever comes of it."""
        for name, row in described.items():
            record = load_user(row["record"])
            self._created[name] = CreatedUser(
                record, tuple(row["roles"]), row["name"], row["changed"]
            )
        self._changed()
