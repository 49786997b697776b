"""Who a peer is, by its certificate: ordered rules, the first that names a known user wins.

The rules and their order are those of Couchbase's client-certificate settings:
a field of the certificate, from which a prefix and a suffix are taken and which is cut at
the first delimiter.  Whether a user exists is the caller's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import NameOID

from kvproto.errors import ConfigError
from kvproto.tls.checks import UNREADABLE

__all__ = ["DEFAULT_RULES", "IdentityRule", "parse_rule", "user_of"]

OPTION = "--cert-user"

_NAME_TYPES: dict[str, type[x509.DNSName | x509.RFC822Name | x509.UniformResourceIdentifier]] = {
    "san.dns": x509.DNSName,
    "san.email": x509.RFC822Name,
    "san.uri": x509.UniformResourceIdentifier,
}
_FIELDS = ("subject.cn", *_NAME_TYPES)
_PARTS = ("prefix", "suffix", "delimiter")


@dataclass(frozen=True, slots=True)
class IdentityRule:
    """One way from a certificate to a user's name.

    Args:
        field: ``subject.cn``, ``san.dns``, ``san.email`` or ``san.uri``.
        prefix: What the value must begin with; taken away.
        suffix: What the value must end with; taken away.
        delimiter: Characters; the name ends before the first of them.
    """

    field: str = "subject.cn"
    prefix: str = ""
    suffix: str = ""
    delimiter: str = ""

    def names(self, certificate: x509.Certificate) -> Iterator[str]:
        """Yield each name that this rule finds, in the certificate's order."""
        for value in _values(self.field, certificate):
            if name := self._name(value):
                yield name

    def _name(self, value: str) -> str:
        """Return the name in a value of the field; ``""`` when the rule does not fit it."""
        if not (value.startswith(self.prefix) and value.endswith(self.suffix)):
            return ""
        name = value[len(self.prefix) : len(value) - len(self.suffix)]
        cut = min((at for mark in self.delimiter if (at := name.find(mark)) >= 0), default=None)
        name = name[:cut]
        # "admin\0.evil.example" must be nobody, not a name that someone else cuts short.
        return name if name.isprintable() else ""


DEFAULT_RULES = (IdentityRule(),)
"""The common name of the subject is the user."""


def parse_rule(text: str) -> IdentityRule:
    r"""Read a rule such as ``san.dns:prefix=www.:delimiter=.``; ``\:`` is a colon in a value.

    Raises:
        ConfigError: It is no rule; says what one looks like.
    """
    field, *parts = _split(text)
    if field not in _FIELDS:
        raise ConfigError(OPTION, f"{field!r} is none of {', '.join(_FIELDS)}")
    values: dict[str, str] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if name not in _PARTS or not equals or name in values:
            raise ConfigError(
                OPTION, f"{part!r} in {text!r} should be one of prefix=, suffix=, delimiter="
            )
        values[name] = value
    return IdentityRule(field, **values)


def user_of(
    chain: Sequence[bytes],
    rules: Iterable[IdentityRule],
    exists: Callable[[str], bool],
) -> str | None:
    """Return the known user that a verified peer is; None when its certificate names none.

    Args:
        chain: The peer's DER certificates, leaf first, as verified in its handshake.
        rules: In the order in which they are tried.
        exists: Whether a user of that name is known.
    """
    if not chain:
        return None
    try:
        certificate = x509.load_der_x509_certificate(chain[0])
    except ValueError:
        # OpenSSL accepts some encodings that cryptography refuses: such a peer is nobody.
        return None
    for rule in rules:
        for name in rule.names(certificate):
            if exists(name):
                return name
    return None


def _values(field: str, certificate: x509.Certificate) -> list[str]:
    try:
        if field == "subject.cn":
            names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
            return [name.value for name in names if isinstance(name.value, str)]
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        return extension.value.get_values_for_type(_NAME_TYPES[field])
    except (*UNREADABLE, x509.ExtensionNotFound):
        return []


def _split(text: str) -> list[str]:
    """Split at colons that no backslash stands before."""
    parts = [""]
    characters = iter(text)
    for character in characters:
        if character == "\\":
            parts[-1] += next(characters, "\\")
        elif character == ":":
            parts.append("")
        else:
            parts[-1] += character
    return parts
