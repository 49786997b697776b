"""How OpenSSL is loaded: with our configuration only where nobody else has a say."""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kvproto import openssl
from kvproto.openssl import is_bundled, load_openssl


class LoadTests(SynchronousTestCase):
    """What is asked before, and what is left behind."""

    def setUp(self) -> None:
        self.loaded_with: list[str] = []
        self.patch(openssl, "import_module", self.load)
        self.patch(openssl, "is_bundled", lambda: True)
        self.patch(openssl, "_BINDING", "kvproto.no.such.binding")
        self.patch(os, "environ", {})

    def load(self, name: str) -> None:
        self.loaded_with.append(Path(os.environ["OPENSSL_CONF"]).read_text(encoding="ascii"))

    def test_loaded_by_us(self) -> None:
        """It finds our file, and nobody finds it afterwards."""
        self.assertTrue(load_openssl())
        self.assertIn("NumTickets = 0", self.loaded_with[0])
        self.assertEqual(os.environ, {})

    def test_cannot_be_loaded(self) -> None:
        """Nothing is left behind then either; whoever needs OpenSSL will say what is wrong."""

        def fail(name: str) -> None:
            raise ImportError(name)

        self.patch(openssl, "import_module", fail)
        self.assertRaises(ImportError, load_openssl)
        self.assertEqual(os.environ, {})

    def test_the_operator_has_named_another(self) -> None:
        """Theirs is used."""
        os.environ["OPENSSL_CONF"] = "/etc/theirs.cnf"
        self.assertFalse(load_openssl())
        self.assertEqual(os.environ, {"OPENSSL_CONF": "/etc/theirs.cnf"})
        self.assertEqual(self.loaded_with, [])

    def test_loaded_already(self) -> None:
        """Then it is too late, and nothing is tried."""
        self.patch(openssl, "_BINDING", "sys")
        self.assertIn("sys", sys.modules)
        self.assertFalse(load_openssl())
        self.assertEqual(self.loaded_with, [])

    def test_the_system_has_a_say(self) -> None:
        """A cryptography that uses the system's OpenSSL goes by the system's configuration."""
        self.patch(openssl, "is_bundled", lambda: False)
        self.assertFalse(load_openssl())
        self.assertEqual(self.loaded_with, [])


class BundledTests(SynchronousTestCase):
    """Whose OpenSSL it is, by what the installed distribution says of itself."""

    def said(self, wheel: str | None) -> bool:
        """Return what is made of the contents of the distribution's file ``WHEEL``."""

        class Distribution:
            def read_text(self, name: str) -> str | None:
                return {"WHEEL": wheel}[name]

        self.patch(openssl, "distribution", lambda name: {"cryptography": Distribution()}[name])
        return is_bundled()

    def test_wheels(self) -> None:
        """Those of PyPI for Linux have one inside."""
        self.assertTrue(self.said("Tag: cp311-abi3-manylinux_2_34_x86_64\n"))
        self.assertTrue(self.said("Tag: cp311-abi3-musllinux_1_2_aarch64\n"))

    def test_others(self) -> None:
        """Built here, or packaged by a distribution, it uses what is on the machine."""
        self.assertFalse(self.said("Tag: cp311-abi3-linux_x86_64\n"))
        self.assertFalse(self.said(None))

    def test_none(self) -> None:
        """Where there is no cryptography, there is no OpenSSL."""

        def missing(name: str) -> None:
            raise PackageNotFoundError(name)

        self.patch(openssl, "distribution", missing)
        self.assertFalse(is_bundled())
