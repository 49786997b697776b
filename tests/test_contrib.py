"""The files in ``contrib``: what they name exists, and they say what is said of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from kvproto.ops.command_line import make_parser
from kvproto.tap import Options
from tests.ops.test_http import FAMILIES

CONTRIB = Path(__file__).resolve().parent.parent / "contrib"

SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
NAMES = {
    name + suffix: labels for name, (kind, labels) in FAMILIES.items() for suffix in SUFFIXES[kind]
}
USE = re.compile(r"\b(kvtls_\w+)(?:\{([^}]*)\})?")


def read(path: str) -> str:
    """Return the text of a file."""
    return (CONTRIB / path).read_text(encoding="utf-8")


def documents(path: str) -> list[Any]:
    """Return what a YAML file holds."""
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError:
        raise SkipTest("PyYAML is not installed") from None
    return list(yaml.safe_load_all(read(path)))


class MonitoringTests(SynchronousTestCase):
    """Alert rules and the dashboard."""

    def check(self, expression: str) -> None:
        """See that an expression uses metrics that exist, with labels that they have."""
        for name, selector in USE.findall(expression):
            self.assertIn(name, NAMES, expression)
            for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector):
                self.assertIn(label, NAMES[name], expression)

    def test_alerts(self) -> None:
        """Every rule is about metrics that exist, and says what to do about it."""
        (rules,) = documents("prometheus/alerts.yml")
        found = [rule for group in rules["groups"] for rule in group["rules"]]
        self.assertGreater(len(found), 5)
        for rule in found:
            self.check(rule["expr"])
            self.assertEqual(set(rule) - {"for"}, {"alert", "expr", "labels", "annotations"})

    def test_dashboard(self) -> None:
        """Every panel shows metrics that exist; every family is on some panel."""
        dashboard = json.loads(read("prometheus/grafana-dashboard.json"))
        shown = set()
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                self.check(target["expr"])
                shown |= {name for name, _ in USE.findall(target["expr"])}
        families = {
            next(f for f in FAMILIES if name in {f + s for s in SUFFIXES[FAMILIES[f][0]]})
            for name in shown
        }
        unshown = {"kvtls_build_info", "kvtls_workers", "kvtls_worker_restarts"}
        self.assertEqual(set(FAMILIES) - families, unshown)


class ContainerTests(SynchronousTestCase):
    """What can be seen without Docker and without a cluster; linters where they are installed."""

    def lint(self, program: str, *arguments: str) -> None:
        """See that a linter, from the extra ``dev``, finds nothing."""
        path = Path(sys.executable).with_name(program)
        if not path.exists():
            raise SkipTest(f"{program} is not installed: pip install -e .[dev]")
        done = subprocess.run(
            [path, *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_hadolint(self) -> None:
        """Hadolint finds nothing in the Dockerfile."""
        self.lint("hadolint", str(CONTRIB / "containers" / "Dockerfile"))

    def test_compose_schema(self) -> None:
        """The compose file is one."""
        schema = "vendor.compose-spec"
        path = CONTRIB / "containers" / "compose.yaml"
        self.lint("check-jsonschema", "--builtin-schema", schema, str(path))

    def test_kubernetes_schema(self) -> None:
        """Kubernetes knows every field of the manifest."""
        self.lint("kubernetes-validate", "--strict", str(CONTRIB / "kubernetes" / "kvtls.yaml"))

    def test_commands(self) -> None:
        """What the containers run, and ask, is what our programs take."""
        text = re.sub(r"\\\n\s*", " ", read("containers/Dockerfile"))
        found = {
            name: json.loads(rest)
            for name, rest in re.findall(
                r"^\s*(?:HEALTHCHECK.*)?(ENTRYPOINT|CMD) (.*)$", text, re.M
            )
        }
        self.assertIn("status --ready", " ".join(re.findall(r"HEALTHCHECK.* CMD (.*)$", text, re.M))
                      .replace('", "', " "))  # fmt: skip
        path = Path(self.mktemp())
        path.write_text(read("containers/kvtls.toml"), encoding="utf-8")
        before, _, ours = " ".join(found["ENTRYPOINT"] + found["CMD"]).partition(" kvtls ")
        self.assertEqual(before, "twistd -n --pidfile=")
        options = Options()
        options.parseOptions(ours.replace("/etc/kvtls/kvtls.toml", str(path)).split())
        config = options.kvtls_config
        assert config is not None
        (compose,) = documents("containers/compose.yaml")
        service = compose["services"]["kvtls"]
        grace = int(service["stop_grace_period"].removesuffix("s"))
        self.assertGreater(grace, config.drain_timeout)
        mounted = {volume.split(":")[1] for volume in service["volumes"]}
        for used in (config.certificate, config.private_key):
            self.assertIn(str(used.parent), mounted)  # type: ignore[union-attr]
        pod = documents("kubernetes/kvtls.yaml")[1]["spec"]["template"]["spec"]
        (shell,) = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][2:]
        _, _, drain = shell.partition("; kvtls ")
        asked = make_parser().parse_args(drain.split())
        self.assertEqual((asked.command, asked.wait), ("drain", True))
        state = pod["containers"][0]["command"][-1]
        self.assertEqual(str(asked.state_dir), state)
        self.assertGreater(pod["terminationGracePeriodSeconds"], 5 + asked.timeout)

    def test_dockerfile(self) -> None:
        """No root, pinned base, no caches left, exec form, a health check."""
        text = read("containers/Dockerfile")
        lines = re.sub(r"\\\n\s*", " ", text).splitlines()
        words = [line.split(" ", 1) for line in lines if line and not line.startswith("#")]
        for name, rest in words:
            if name == "FROM":
                self.assertRegex(rest, r":\d[\w.-]*( AS \w+)?$")
            if name in {"ENTRYPOINT", "CMD"}:
                json.loads(rest)
            if name == "RUN" and "apt-get install" in rest:
                self.assertIn("--no-install-recommends", rest)
                self.assertIn("rm -rf /var/lib/apt/lists/*", rest)
            if name == "RUN" and "pip install" in rest:
                self.assertIn("--no-cache-dir", rest)
        kinds = [name for name, _ in words]
        self.assertRegex(dict(words)["USER"], r"^[1-9]\d*:[1-9]\d*$")
        self.assertGreater(kinds.index("USER"), len(kinds) - 1 - kinds[::-1].index("RUN"))
        self.assertIn('"status", "--ready"', dict(words)["HEALTHCHECK"])
        self.assertNotIn("ADD", kinds)

    def test_compose(self) -> None:
        """No privileges, no writable root, HTTP for this machine only."""
        (compose,) = documents("containers/compose.yaml")
        service = compose["services"]["kvtls"]
        self.assertTrue(service["read_only"])
        self.assertEqual(service["cap_drop"], ["ALL"])
        self.assertIn("127.0.0.1:9207:9207", service["ports"])

    def test_kubernetes(self) -> None:
        """Probes, drain and mounts fit the configuration, which is good."""
        objects = {one["kind"]: one for one in documents("kubernetes/kvtls.yaml")}
        self.assertEqual(set(objects), {"ConfigMap", "Deployment", "Service"})
        for one in objects.values():
            self.assertLessEqual({"apiVersion", "kind", "metadata"}, set(one))
        path = Path(self.mktemp())
        path.write_text(objects["ConfigMap"]["data"]["kvtls.toml"], encoding="utf-8")
        options = Options()
        options.parseOptions(["--config", str(path)])
        config = options.kvtls_config
        assert config is not None
        template = objects["Deployment"]["spec"]["template"]
        selector = objects["Deployment"]["spec"]["selector"]["matchLabels"]
        self.assertEqual(template["metadata"]["labels"], selector)
        self.assertEqual(objects["Service"]["spec"]["selector"], selector)
        pod = template["spec"]
        (container,) = pod["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        self.assertIn(f"tcp:{ports['kvtls']}", config.listen)
        self.assertEqual(config.http, f"tcp:{ports['http']}:interface=0.0.0.0")
        probes = {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/livez"}
        for name, where in probes.items():
            self.assertEqual(container[name]["httpGet"], {"path": where, "port": "http"})
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"] for volume in pod["volumes"]}
        self.assertEqual(set(mounts.values()), volumes)
        for used in (config.certificate, config.private_key, config.users_file):
            self.assertIn(str(used.parent), mounts)  # type: ignore[union-attr]
        self.assertNotIn("subPath", read("kubernetes/kvtls.yaml"))
        command = container["lifecycle"]["preStop"]["exec"]["command"]
        self.assertIn("drain --wait", command[-1])
        self.assertGreater(pod["terminationGracePeriodSeconds"], 5 + 25)
        self.assertTrue(pod["securityContext"]["runAsNonRoot"])

    def test_unit(self) -> None:
        """The unit's options are ours."""
        unit = read("systemd/kvtls.service")
        start = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)[0]
        used = set(re.findall(r" (--[a-z-]+)", start.split(" kvtls ", 1)[1]))
        self.assertLessEqual(
            used, {"--config", "--users", "--certificate", "--private-key", "--state-dir"}
        )
        self.assertIn("Type=notify-reload", unit)
        self.assertEqual(textwrap.dedent(unit), unit)
