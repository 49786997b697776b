"""From a certificate to a user."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import ConfigError
from kvproto.testing.certificates import client_identity
from kvproto.tls.identity import DEFAULT_RULES, IdentityRule, parse_rule, user_of
from tests.tls.material import der_chain, moment


def certificate(*names: str, sans: tuple[x509.GeneralName, ...] = ()) -> tuple[bytes, ...]:
    """Return the DER chain of a peer with these common names and alternative names."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(moment(-1))
        .not_valid_after(moment(1))
    )
    if sans:
        builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
    return (builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER),)


PEER = certificate(
    "alice.smith",
    sans=(
        x509.DNSName("www.shop.example"),
        x509.DNSName("db.shop.example"),
        x509.RFC822Name("bob@internal.example"),
        x509.UniformResourceIdentifier("spiffe://example/ns/prod/carol"),
    ),
)


def known(*names: str):
    """Return a look-up that knows these users."""
    return frozenset(names).__contains__


class UserTests(SynchronousTestCase):
    """The first rule that names a known user wins."""

    def test_default(self) -> None:
        """Without rules of one's own the common name is the user."""
        chain = der_chain(client_identity("alice"))
        self.assertEqual(user_of(chain, DEFAULT_RULES, known("alice")), "alice")
        self.assertIsNone(user_of(chain, DEFAULT_RULES, known("bob")))

    def test_no_certificate(self) -> None:
        """A peer without certificate is nobody."""
        self.assertIsNone(user_of((), DEFAULT_RULES, known("")))

    def test_rules(self) -> None:
        """Each field, with prefix, suffix and delimiters, leads to its name."""
        for text, name in (
            ("subject.cn", "alice.smith"),
            ("subject.cn:delimiter=.", "alice"),
            ("subject.cn:prefix=alice.", "smith"),
            ("subject.cn:suffix=.smith", "alice"),
            ("san.dns", "www.shop.example"),
            ("san.dns", "db.shop.example"),
            ("san.dns:prefix=www.:delimiter=.", "shop"),
            ("san.dns:prefix=db.:suffix=.example", "shop"),
            ("san.email:delimiter=@", "bob"),
            ("san.email:suffix=@internal.example", "bob"),
            ("san.uri:prefix=spiffe\\://example/ns/:delimiter=/", "prod"),
            ("san.uri:prefix=spiffe\\://example/ns/prod/", "carol"),
            ("san.email:delimiter=.@", "bob"),
            ("san.uri:prefix=spiffe\\:/:delimiter=l", "/examp"),
        ):
            self.assertEqual(user_of(PEER, [parse_rule(text)], known(name)), name, text)

    def test_no_fit(self) -> None:
        """A value without the prefix or suffix, or with nothing left, names nobody."""
        for rule in (
            IdentityRule("san.dns", prefix="api."),
            IdentityRule("san.dns", suffix=".org"),
            IdentityRule("subject.cn", prefix="alice.smith"),
            IdentityRule("subject.cn", prefix="alice.s", suffix="e.smith"),
            IdentityRule("subject.cn", delimiter="a"),
        ):
            names = list(rule.names(x509.load_der_x509_certificate(PEER[0])))
            self.assertEqual(names, [], rule)

    def test_order(self) -> None:
        """Rules are tried in their order, names in the certificate's."""
        rules = [parse_rule("san.email:delimiter=@"), parse_rule("san.dns")]
        everyone = known("bob", "www.shop.example", "db.shop.example")
        self.assertEqual(user_of(PEER, rules, everyone), "bob")
        self.assertEqual(user_of(PEER, rules[::-1], everyone), "www.shop.example")
        self.assertEqual(user_of(PEER, rules, known("db.shop.example")), "db.shop.example")

    def test_unknown_users_are_passed_over(self) -> None:
        """A rule that names nobody known leaves the matter to the next."""
        rules = [parse_rule("subject.cn"), parse_rule("san.email:delimiter=@")]
        self.assertEqual(user_of(PEER, rules, known("bob")), "bob")

    def test_control_characters(self) -> None:
        """A name with a NUL or line break in it is nobody's."""
        for name in ("admin\0.example", "admin\n", "\x1b[31madmin"):
            chain = certificate(name)
            self.assertIsNone(user_of(chain, DEFAULT_RULES, lambda _name: True))

    def test_not_a_certificate(self) -> None:
        """Bytes that do not parse are nobody."""
        self.assertIsNone(user_of((b"junk",), DEFAULT_RULES, lambda _name: True))

    def test_unreadable_fields(self) -> None:
        """A field that is no text names nobody; the other rules still count."""
        spoilt = PEER[0].replace(b"alice.smith", b"\xff" * 11)
        rules = [parse_rule("subject.cn"), parse_rule("san.email:delimiter=@")]
        self.assertEqual(user_of((spoilt,), rules, lambda _name: True), "bob")

    def test_only_the_leaf_counts(self) -> None:
        """A name in an issuer's certificate is nobody's login."""
        chain = (certificate("eve")[0], certificate("alice")[0])
        self.assertIsNone(user_of(chain, DEFAULT_RULES, known("alice")))


class ParseTests(SynchronousTestCase):
    """Rules as text."""

    def test_parts(self) -> None:
        """All parts, in any order; colons are escaped."""
        self.assertEqual(
            parse_rule("san.uri:delimiter=/?:prefix=a\\:b:suffix=\\\\"),
            IdentityRule("san.uri", "a:b", "\\", "/?"),
        )
        self.assertEqual(parse_rule("san.dns:suffix=\\"), IdentityRule("san.dns", suffix="\\"))
        self.assertEqual(parse_rule("san.dns:prefix=a=b"), IdentityRule("san.dns", prefix="a=b"))

    def test_bad_rules(self) -> None:
        """What is no rule is refused with what one looks like."""
        for text, phrase in (
            ("", "'' is none of subject.cn, san.dns, san.email, san.uri"),
            ("subject.ou", "'subject.ou' is none of"),
            ("san.dns:www.", "'www.' in 'san.dns:www.' should be one of prefix="),
            ("san.dns:prefix", "should be one of"),
            ("san.dns:postfix=x", "should be one of"),
            ("san.dns:prefix=a:prefix=b", "should be one of"),
        ):
            error = self.assertRaises(ConfigError, parse_rule, text)
            self.assertIn("--cert-user: ", str(error))
            self.assertIn(phrase, str(error))
