"""SCRAM (SHA-1, SHA-256, SHA-512) without I/O: both sides' messages, keys and proofs.

Owns the two state machines of one login, and what is derived from a password.  Never runs PBKDF2
by itself (`salted_password` is the one slow call; its caller may run it in a thread), never makes
random numbers (nonces and salts are arguments), knows no users.  Channel binding is not offered.

A peer's fault is a `RemoteProtocolError` with status 0x20; calls out of order are the caller's
fault.  A *wrong proof* is no error of the protocol: `ServerExchange.finish` says None.

Sources: RFC 5802; RFC 7677 (SHA-256); RFC 4013 (SASLprep); Couchbase kv_engine ``docs/sasl.md``
for the mechanisms' names and for SHA-512.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import stringprep
import unicodedata
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from dataclasses import dataclass
from enum import Enum

from kvproto.errors import LocalProtocolError, RemoteProtocolError
from kvproto.wire.constants import Status

__all__ = [
    "DIGESTS",
    "MAX_ITERATIONS",
    "MAX_LENGTH",
    "MIN_ITERATIONS",
    "ClientExchange",
    "ScramKeys",
    "ServerExchange",
    "decoy_keys",
    "derive_keys",
    "prepare",
    "salted_password",
]

DIGESTS: dict[bytes, str] = {
    b"SCRAM-SHA512": "sha512",
    b"SCRAM-SHA256": "sha256",
    b"SCRAM-SHA1": "sha1",
    b"SCRAM-SHA-512": "sha512",
    b"SCRAM-SHA-256": "sha256",
    b"SCRAM-SHA-1": "sha1",
}
"""Each mechanism, Couchbase's spelling first and then IANA's, the strongest first: its digest."""

MIN_ITERATIONS = 4096
"""Fewest iterations a client accepts (RFC 5802 section 5.1): fewer would make what it sends cheap
to search for a server that is not who it says."""

MAX_ITERATIONS = 1_000_000
"""Most iterations a client accepts: half a second of SHA-512; a server must not burn more."""

MAX_LENGTH = 1024
"""Characters of a name or password; preparing one takes a millisecond at most."""

_BIDI_PROHIBITED = "right-to-left text must begin and end with right-to-left letters"
_PROHIBITED = (
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
    stringprep.in_table_a1,
)
"""RFC 4013 section 2.3, and unassigned code points (section 2.5)."""

_NAME = re.compile(rb"(?:[^=,\0]|=2C|=3D)+\Z")
_CLIENT_FIRST = re.compile(
    # The nonce is taken byte for byte up to the next comma: Couchbase's SDK puts spaces into it.
    rb"(?P<gs2>(?P<flag>[ny]|p=[^,]*),(?:a=(?P<authorise_as>[^,]*))?,)"
    rb"(?P<bare>n=(?P<name>[^,]*),r=(?P<nonce>[^,\0]+)(?:,[a-ln-zA-Z]=[^,]*)*)\Z",
    re.DOTALL,
)
_CLIENT_FINAL = re.compile(
    rb"(?P<unproved>c=(?P<binding>[^,]*),r=(?P<nonce>[^,\0]+)(?:,[a-ln-zA-Z]=[^,]*)*)"
    rb",p=(?P<proof>[^,]*)\Z",
    re.DOTALL,
)
_SERVER_FIRST = re.compile(
    rb"r=(?P<nonce>[^,\0]+),s=(?P<salt>[^,]+),i=(?P<iterations>[1-9][0-9]{0,9})"
    rb"(?:,[a-ln-zA-Z]=[^,]*)*\Z",
    re.DOTALL,
)
_SERVER_FINAL = re.compile(rb"v=(?P<signature>[^,]*)(?:,[a-ln-zA-Z]=[^,]*)*\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ScramKeys:
    """What a server keeps of one user for one digest; the password does not follow from it.

    Attributes:
        salt: Random bytes, 16 or more.
        iterations: Of PBKDF2.
        stored_key: Verifies the client's proof.
        server_key: Proves to the client that the server knows the user.
    """

    salt: bytes
    iterations: int
    stored_key: bytes
    server_key: bytes


def salted_password(digest: str, password: bytes, salt: bytes, iterations: int) -> bytes:
    """Run PBKDF2: the slow part, milliseconds; safe to run in a thread (it lets go of the GIL).

    Args:
        digest: One of the values of `DIGESTS`.
        password: Prepared (see `prepare`) and encoded as UTF-8.
        salt: As stored, or as the server sent it.
        iterations: As stored, or as the server sent it.
    """
    return hashlib.pbkdf2_hmac(digest, password, salt, iterations)


def derive_keys(digest: str, salted: bytes, salt: bytes, iterations: int) -> ScramKeys:
    """Return what a server keeps, from `salted_password` and what went into it."""
    client_key = hmac.digest(salted, b"Client Key", digest)
    return ScramKeys(
        salt,
        iterations,
        hashlib.new(digest, client_key).digest(),
        hmac.digest(salted, b"Server Key", digest),
    )


def decoy_keys(
    digest: str, secret: bytes, name: bytes, iterations: int, salt_size: int = 16
) -> ScramKeys:
    """Return keys for a user that does not exist: no password fits, and nobody can tell.

    The same question gets the same salt every time, as it would for a user that exists.

    Args:
        digest: One of the values of `DIGESTS`.
        secret: Random bytes, the server's own, kept at least as long as it runs.
        name: As the client gave it.
        iterations: As real users have.
        salt_size: Bytes of salt, as real users have; at most the digest's size.
    """

    def made(purpose: bytes) -> bytes:
        return hmac.digest(secret, purpose + b"\0" + name, digest)

    # Whoever would log in needs the preimage of a stored key that is the digest of nothing known.
    return ScramKeys(made(b"salt")[:salt_size], iterations, made(b"stored"), made(b"server"))


def prepare(text: str) -> bytes:
    """Prepare a name or password for comparison (SASLprep), and encode it as UTF-8.

    Raises:
        LocalProtocolError: It has characters that no name or password may have, or is longer than
            `MAX_LENGTH`.

    Source: RFC 4013.
    """
    if len(text) > MAX_LENGTH:
        raise LocalProtocolError(f"a name or password has at most {MAX_LENGTH} characters")
    if text.isascii() and text.isprintable():
        return text.encode()
    mapped = "".join(
        " " if stringprep.in_table_c12(letter) else letter
        for letter in text
        if not stringprep.in_table_b1(letter)
    )
    normal = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    letters = set(normal)  # one character may stand for eighteen
    for letter in letters:
        if any(prohibits(letter) for prohibits in _PROHIBITED):
            raise LocalProtocolError(f"U+{ord(letter):04X} cannot be in a name or password")
    if any(map(stringprep.in_table_d1, letters)) and not (
        stringprep.in_table_d1(normal[0])
        and stringprep.in_table_d1(normal[-1])
        and not any(map(stringprep.in_table_d2, letters))
    ):
        raise LocalProtocolError(_BIDI_PROHIBITED)
    return normal.encode()


class _State(Enum):
    """Where a login stands; each message moves it one step, a bad one to the end."""

    BEGIN = "begin"
    NAMED = "named"
    CHALLENGED = "challenged"
    PROVED = "proved"
    OVER = "over"


class _Exchange:
    """What both sides share.

    Args:
        digest: One of the values of `DIGESTS`.
        nonce: This side's part of the nonce: printable ASCII without commas, unpredictable.

    Raises:
        LocalProtocolError: The nonce cannot be one.
    """

    __slots__ = ("_bare", "_digest", "_gs2", "_nonce", "_own_nonce", "_server_first", "_state")

    def __init__(self, digest: str, nonce: bytes) -> None:
        if not nonce or any(not 0x21 <= byte <= 0x7E or byte == 0x2C for byte in nonce):
            raise LocalProtocolError("a nonce is printable ASCII without commas")
        self._digest = digest
        self._own_nonce = nonce
        self._state = _State.BEGIN
        self._gs2 = b"n,,"
        self._bare = b""
        self._nonce = b""
        self._server_first = b""

    def _move(self, before: _State, after: _State) -> None:
        """Take one step; until the caller is through with it, the login counts as over."""
        if self._state is not before:
            raise LocalProtocolError(f"a SCRAM login cannot go from {self._state} to {after}")
        self._state = after

    def _match(self, form: re.Pattern[bytes], message: bytes, what: str) -> re.Match[bytes]:
        found = form.match(message)
        if found is None:
            raise self._malformed(f"malformed SCRAM {what}")
        return found

    def _malformed(self, reason: str) -> RemoteProtocolError:
        self._state = _State.OVER
        return RemoteProtocolError(reason, Status.AUTH_ERROR)

    def _decode(self, text: bytes, what: str) -> bytes:
        try:
            return a2b_base64(text, strict_mode=True)
        except Base64Error:
            raise self._malformed(f"malformed SCRAM {what}") from None

    def _auth_message(self, unproved: bytes) -> bytes:
        return b",".join((self._bare, self._server_first, unproved))


class ServerExchange(_Exchange):
    """The server's side of one login: `begin`, then `challenge`, then `finish`."""

    __slots__ = ("_keys",)

    def __init__(self, digest: str, nonce: bytes) -> None:
        super().__init__(digest, nonce)
        self._keys = ScramKeys(b"", 0, b"", b"")

    def begin(self, client_first: bytes) -> bytes:
        """Read who wants to log in; the caller finds the keys (`decoy_keys` for nobody).

        Returns:
            The name, escapes undone.

        Raises:
            RemoteProtocolError: The message is malformed, binds a channel, or would act for
                another user.
        """
        self._move(_State.BEGIN, _State.NAMED)
        found = self._match(_CLIENT_FIRST, client_first, "client-first-message")
        if found["flag"].startswith(b"p"):
            raise self._malformed("channel binding is not offered")
        if not _NAME.match(found["name"]):
            raise self._malformed("malformed user name")
        if found["authorise_as"] not in {None, b"", found["name"]}:
            raise self._malformed("nobody can act for another user")
        self._gs2, self._bare = found["gs2"], found["bare"]
        self._nonce = found["nonce"] + self._own_nonce
        return found["name"].replace(b"=2C", b",").replace(b"=3D", b"=")

    def challenge(self, keys: ScramKeys) -> bytes:
        """Return server-first-message: nonce, salt and iterations, nothing else.

        Couchbase's SDK refuses a message with anything else in it.
        """
        self._move(_State.NAMED, _State.CHALLENGED)
        self._keys = keys
        self._server_first = b"r=%b,s=%b,i=%d" % (self._nonce, _encode(keys.salt), keys.iterations)
        return self._server_first

    def finish(self, client_final: bytes) -> bytes | None:
        """Check the client's proof.

        Returns:
            server-final-message for a client that is now logged in, None for one that is not.

        Raises:
            RemoteProtocolError: The message is malformed or belongs to another login.
        """
        self._move(_State.CHALLENGED, _State.OVER)
        found = self._match(_CLIENT_FINAL, client_final, "client-final-message")
        if self._decode(found["binding"], "channel binding") != self._gs2:
            raise self._malformed("the channel binding is not what the client began with")
        if not hmac.compare_digest(found["nonce"], self._nonce):
            raise self._malformed("the nonce is not that of this login")
        auth_message = self._auth_message(found["unproved"])
        stored = self._keys.stored_key
        proof = self._decode(found["proof"], "proof")
        signature = hmac.digest(stored, auth_message, self._digest)
        if len(proof) != len(signature):
            raise self._malformed("the proof has another digest's size")
        client_key = _xor(proof, signature)
        if not hmac.compare_digest(hashlib.new(self._digest, client_key).digest(), stored):
            return None
        return b"v=" + _encode(hmac.digest(self._keys.server_key, auth_message, self._digest))


class ClientExchange(_Exchange):
    """The client's side: `begin`, `challenged`, (`salted_password`,) `prove`, then `verify`.

    Args:
        digest: One of the values of `DIGESTS`.
        name: Who logs in, prepared (see `prepare`).
        nonce: The client's part: printable ASCII without commas, unpredictable.
    """

    __slots__ = ("_name", "_server_signature")

    def __init__(self, digest: str, name: bytes, nonce: bytes) -> None:
        super().__init__(digest, nonce)
        self._name = name
        self._server_signature = b""

    def begin(self) -> bytes:
        """Return client-first-message."""
        self._move(_State.BEGIN, _State.NAMED)
        name = self._name.replace(b"=", b"=3D").replace(b",", b"=2C")
        self._bare = b"n=%b,r=%b" % (name, self._own_nonce)
        return self._gs2 + self._bare

    def challenged(
        self,
        server_first: bytes,
        min_iterations: int = MIN_ITERATIONS,
        max_iterations: int = MAX_ITERATIONS,
    ) -> tuple[bytes, int]:
        """Read the server's challenge.

        Returns:
            Salt and iterations, for `salted_password`.

        Raises:
            RemoteProtocolError: It is malformed, does not continue this login's nonce, or asks for
                too few or too many iterations.
        """
        self._move(_State.NAMED, _State.CHALLENGED)
        found = self._match(_SERVER_FIRST, server_first, "server-first-message")
        nonce, iterations = found["nonce"], int(found["iterations"])
        if not nonce.startswith(self._own_nonce) or len(nonce) == len(self._own_nonce):
            raise self._malformed("the server's nonce does not continue ours")
        if not min_iterations <= iterations <= max_iterations:
            raise self._malformed(f"the server asks for {iterations} iterations")
        self._nonce, self._server_first = nonce, server_first
        return self._decode(found["salt"], "salt"), iterations

    def prove(self, salted: bytes) -> bytes:
        """Return client-final-message; `salted` is what `salted_password` gave."""
        self._move(_State.CHALLENGED, _State.PROVED)
        unproved = b"c=%b,r=%b" % (_encode(self._gs2), self._nonce)
        auth_message = self._auth_message(unproved)
        client_key = hmac.digest(salted, b"Client Key", self._digest)
        stored_key = hashlib.new(self._digest, client_key).digest()
        proof = _xor(client_key, hmac.digest(stored_key, auth_message, self._digest))
        server_key = hmac.digest(salted, b"Server Key", self._digest)
        self._server_signature = hmac.digest(server_key, auth_message, self._digest)
        return b"%b,p=%b" % (unproved, _encode(proof))

    def verify(self, server_final: bytes) -> None:
        """Check that the server knows the user as well.

        Raises:
            RemoteProtocolError: It does not, or the message is malformed.
        """
        self._move(_State.PROVED, _State.OVER)
        found = self._match(_SERVER_FINAL, server_final, "server-final-message")
        signature = self._decode(found["signature"], "server signature")
        if not hmac.compare_digest(signature, self._server_signature):
            raise self._malformed("the server's signature is wrong: it does not know the user")


def _encode(content: bytes) -> bytes:
    return b2a_base64(content, newline=False)


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(map(int.__xor__, one, other))
