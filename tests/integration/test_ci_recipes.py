"""The recipes of ``contrib/ci``: well formed, and their commands do what they say."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.integration.service import PATIENCE, succeeds
from tests.integration.test_foreign import SUITE
from tests.ports import free_port

RECIPES = Path(__file__).resolve().parents[2] / "contrib" / "ci"

SCHEMAS = {
    "github-actions.yml": "vendor.github-workflows",
    "gitlab-ci.yml": "vendor.gitlab-ci",
}
"""What check-jsonschema calls the schema of each."""

PORTS = ("11207", "11210", "8091")


def text_of(name: str) -> str:
    """Return a recipe."""
    return (RECIPES / name).read_text(encoding="utf-8")


def starting(name: str) -> str:
    """Return the lines of shell that start the service."""
    found = re.search(r"^ *twistd .*?kvtls wait$", text_of(name), re.DOTALL | re.MULTILINE)
    assert found is not None, name
    return re.sub(r"\\\n +", "\\\n    ", textwrap.dedent(found[0]))


def check(file: Path, schema: str) -> tuple[int, str]:
    """Hold a file against a schema; return the status, 0 when it fits, and what was said."""
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(file)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


class RecipeTests(SynchronousTestCase):
    """All of them, and each."""

    def test_schemas(self) -> None:
        """GitHub and GitLab would take theirs, and not one with a mistake in it."""
        if importlib.util.find_spec("check_jsonschema") is None:
            raise SkipTest("check-jsonschema is not installed")
        wrong = Path(self.mktemp())
        for name, schema in SCHEMAS.items():
            code, output = check(RECIPES / name, schema)
            self.assertEqual(code, 0, output)
            broken = re.sub(r"(timeout[-a-z]*): .*", r"\1: [never]", text_of(name))
            wrong.write_text(broken, encoding="utf-8")
            self.assertNotEqual(check(wrong, schema)[0], 0)

    def test_jenkins(self) -> None:
        """The braces of the Jenkinsfile match, and its steps are shell."""
        text = text_of("Jenkinsfile")
        code = re.sub(r"'''.*?'''|'[^'\n]*'|\"[^\"\n]*\"|//[^\n]*", "", text, flags=re.DOTALL)
        depth = 0
        for sign in re.findall(r"[{}]", code):
            depth += 1 if sign == "{" else -1
            self.assertGreaterEqual(depth, 0)
        self.assertEqual(depth, 0)
        self.assertRegex(code, r"\A\s*pipeline \{")
        for section in ("agent", "stages", "post", "options", "environment"):
            self.assertEqual(len(re.findall(rf"^    {section} \{{", text, re.MULTILINE)), 1)
        steps = re.findall(r"sh '''\n(.*?)'''", text, re.DOTALL)
        self.assertEqual(len(steps), text.count("sh '"))
        for step in steps:
            done = subprocess.run(
                ["sh", "-n", "-c", textwrap.dedent(step)], capture_output=True, check=False
            )
            self.assertEqual(done.returncode, 0, done.stderr)

    def test_same(self) -> None:
        """All start the service alike."""
        first, *others = (starting(name) for name in (*SCHEMAS, "Jenkinsfile"))
        for other in others:
            self.assertEqual(other, first)

    def test_commands(self) -> None:
        """What they start is what a suite needs that expects a container; and it can be stopped."""
        scratch = Path(self.enterContext(tempfile.TemporaryDirectory()))
        ports = {port: str(free_port()) for port in PORTS}
        script = starting("github-actions.yml").replace(
            " kvtls \\\n", f" kvtls --listen tcp:{ports['11207']}:interface=127.0.0.1 \\\n"
        )
        for port, free in ports.items():
            script = script.replace(f"tcp:{port}", f"tcp:{free}")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        settings = {
            "COUCHBASE_URL": f"couchbase://127.0.0.1:{ports['11210']}",
            "COUCHBASE_USERNAME": "Administrator",
            "COUCHBASE_PASSWORD": "password",
        }
        script += "\ntrap 'kvtls stop --wait' EXIT\n"
        script += f"python -m pytest -q -p no:cacheprovider {SUITE}"
        said = succeeds(
            ["bash", "-euc", script],
            3 * PATIENCE,
            cwd=scratch,
            env={**os.environ, **settings, "PATH": path},
        )
        self.assertIn("5 passed", said)
        self.assertIn("has ended", said)
        self.assertFalse((scratch / "kvtls.pid").exists())
