"""The scripts that run in the engine.

Each works on one key, writes with its last call or not at all, and is sent by its digest; an
engine that has lost it (a restart, a failover) says NOSCRIPT, and then it is sent as a whole.

A document begins with a header (`kvproto.upstream.codec`): its version, 8 bytes of CAS, 8 of the
moment until which it is locked, 4 of the length of its attributes, one that says whether it is a
tombstone, and more.  Lua's numbers are doubles, so a CAS is handled as two halves of 32 bits.

Source: Redis documentation, "Scripting with Lua"; Lua ``struct`` library as Redis contains it.
"""

from __future__ import annotations

from hashlib import sha1

__all__ = ["REPLACE_IF", "SET_NEWER", "SET_PLAIN", "Script", "with_text"]


class Script:
    """A script.

    Args:
        text: Its source.

    Attributes:
        text: The same.
        digest: By which the engine knows it.
        start: How a call with one key begins, behind the number of its words.
    """

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.digest = sha1(text, usedforsecurity=False).hexdigest().encode()
        self.start = b"\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n1\r\n" % self.digest

    def call(self, key: bytes, *arguments: bytes) -> bytes:
        """Encode a call with one key."""
        parts = [b"*%d%b$%d\r\n%b\r\n" % (len(arguments) + 4, self.start, len(key), key)]
        parts += [b"$%d\r\n%b\r\n" % (len(part), part) for part in arguments]
        return b"".join(parts)


SET_PLAIN = Script(
    b"""\
local key, document = KEYS[1], ARGV[1]
local old = redis.call('GETRANGE', key, 0, 21)
local answer = 1
if old ~= '' then
  if string.byte(old) ~= 1 or string.sub(old, 10) ~= '@' then
    return redis.call('GET', key)
  end
  local h, l = struct.unpack('>I4I4', old, 2)
  local high, low = struct.unpack('>I4I4', document, 2)
  if h > high or (h == high and l >= low) then
    l = l + 1
    if l == 4294967296 then h, l = h + 1, 0 end
    answer = struct.pack('>I4I4', h, l)
    document = '\\1' .. answer .. string.sub(document, 10, 40) .. answer .. string.sub(document, 49)
  end
end
if ARGV[2] then
  redis.call('SET', key, document, 'PXAT', ARGV[2])
else
  redis.call('SET', key, document)
end
return answer
""".replace(b"@", rb"\0" * 13)
)
"""Set a document unless there is one that is locked, has attributes, or is a tombstone.

Arguments: the document, and perhaps unix time in milliseconds when it expires.  Returns 1; or the 8
bytes of the CAS, and sequence number, that the document was given in place of its own, since what
was there had a larger one; or what is there.
"""

REPLACE_IF = Script(
    b"""\
local old = redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] == 0 and 0 or #ARGV[1] - 1)
if old ~= ARGV[1] then
  return redis.call('GET', KEYS[1])
end
if ARGV[2] == '' then
  redis.call('UNLINK', KEYS[1])
elseif ARGV[3] then
  redis.call('SET', KEYS[1], ARGV[2], 'PXAT', ARGV[3])
else
  redis.call('SET', KEYS[1], ARGV[2])
end
return 1
"""
)
"""Replace a document if it still begins with this header.

Arguments: the header, empty where nothing must be; the new document, empty to remove it; perhaps
unix time in milliseconds when it expires.  Returns 1; or what is there.
"""

SET_NEWER = Script(
    b"""\
local old = redis.call('GET', KEYS[1])
if old and old >= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
return 1
"""
)
"""Set a record of epochs (`kvproto.upstream.epochs`) unless a newer one is there."""

_ALL = (SET_PLAIN, REPLACE_IF, SET_NEWER)


def with_text(data: bytes) -> bytes:
    """Encode a call again, with the script in place of its digest; other commands stay."""
    for script in _ALL:
        sent = b"\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n" % script.digest
        at = data.find(sent, 0, 16 + len(sent))
        if at >= 0:
            head = b"\r\n$4\r\nEVAL\r\n$%d\r\n%b\r\n" % (len(script.text), script.text)
            return data[:at] + head + data[at + len(sent) :]
    return data
