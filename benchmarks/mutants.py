"""Change the code in one place at a time and see whether a room's tests notice.

mutmut makes the mutants, as ``[tool.mutmut]`` in pyproject.toml says.  This runs them: everything
is imported once, with all mutants in it, and a fork for each mutant puts it in the place of its
function and runs the tests that reach the changed line: first those that killed its neighbours,
then its module's, until one fails.  That makes several mutants a second, where one interpreter
each would take seconds.

    KVPROTO_PURE_PYTHON=1 KVPROTO_EXAMPLES=few nice python -m benchmarks.mutants run tls
    python -m benchmarks.mutants show tls

Results are added to ``mutants/ROOM.jsonl`` as they come, and a run goes on where the last one
ended; delete the file after a change of the code.  What runs at import is there before a mutant
is, so its mutants survive.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import json
import mmap
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "mutants"
MEMORY = 2 << 30
"""Address space, in bytes, that a mutant may take beyond what the tests have."""

CPU_LIMIT = 1.0
"""Seconds of processor time that a test may take beyond five times its own."""

CLOCK_LIMIT = 20.0
"""Seconds by the clock that a test may take beyond ten times its own: it waits for something."""


@dataclass
class Mutant:
    """One change of one function."""

    name: str
    path: str
    lines: frozenset[int]
    """Lines of the generated file of which a test must run one to see the change."""
    change: list[str]
    target: Any = None
    """The function as it is."""
    changed: Any = None
    """The function with the change."""

    def apply(self) -> None:
        """Put the change in the place of its function, in this process."""
        names = self.target.__code__.co_freevars
        # They differ where the change took the only `super()` away.
        self.target.__code__ = self.changed.__code__.replace(co_freevars=names)
        self.target.__defaults__ = self.changed.__defaults__
        self.target.__kwdefaults__ = self.changed.__kwdefaults__

    @property
    def function(self) -> str:
        """The name of the function that it changes."""
        return self.name.rpartition("__mutmut_")[0]


@dataclass(eq=False)
class Test:
    """One test of the room, and what it does without a mutant."""

    case: Any
    seconds: float = 0.0
    passes: bool = False
    lines: dict[str, set[int]] = field(default_factory=dict)


class Rooms(importlib.abc.MetaPathFinder):
    """Imports the modules of a room with all their mutants."""

    def __init__(self, room: str) -> None:
        self.prefix = f"kvproto.{room}"
        self.mutants: list[Mutant] = []
        self._functions: list[tuple[FunctionType, dict[str, Any]]] = []
        from mutmut.mutation import trampoline

        trampoline.wrap_in_trampoline = self._wrap

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return how to import one module, as importlib asks it."""
        from mutmut.configuration import config

        if not f"{fullname}.".startswith(f"{self.prefix}."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is None or spec.origin is None:
            return spec
        if config().should_mutate(os.path.relpath(spec.origin, ROOT)):
            spec.loader = Loader(fullname, spec.origin, self)
        return spec

    def add(self, module: str, path: str, source: str) -> CodeType:
        """Return a module's code with its mutants, and keep what they change."""
        kept = RESULTS / "code" / f"{module}.{zlib.crc32(source.encode()):08x}"
        if kept.exists():
            generated, names = json.loads(kept.read_text())
        else:
            from mutmut.mutation.file_mutation import mutate_file_contents

            made = mutate_file_contents(path, source)
            generated, names = made.code, list(made.mutant_names)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps([generated, names]))
        nodes = dict(_functions(ast.parse(generated)))
        text = generated.splitlines()
        for name in names:
            before, after = nodes[name.rpartition("__mutmut_")[0][2:]], nodes[name]
            old = text[before.lineno - 1 : before.end_lineno]
            new = text[after.lineno - 1 : after.end_lineno]
            new[0] = new[0].replace(name, before.name, 1)
            changed = next(i for i in range(len(new)) if old[i : i + 1] != new[i : i + 1])
            self.mutants.append(
                Mutant(
                    f"{module}.{name}",
                    path,
                    frozenset(_statement(before, before.lineno + changed)),
                    [d for d in difflib.ndiff(old, new) if d[0] in "+-"],
                )
            )
        return compile(generated, path, "exec", dont_inherit=True)

    def _wrap(self, mutants: dict[str, Any], is_classmethod: bool = False) -> Callable[..., Any]:
        def keep(function: FunctionType) -> FunctionType:
            self._functions.append((function, mutants))
            return function

        return keep

    def bind(self) -> None:
        """Find the function that each mutant changes, after all has been imported."""
        found = {
            f"{function.__module__}.{name}": (function, getattr(mutant, "__func__", mutant))
            for function, mutants in self._functions
            for name, mutant in mutants.items()
        }
        for mutant in self.mutants:
            mutant.target, mutant.changed = found[mutant.name]


class Loader(importlib.machinery.SourceFileLoader):
    """Compiles a module with its mutants."""

    def __init__(self, fullname: str, path: str, rooms: Rooms) -> None:
        super().__init__(fullname, path)
        self._rooms = rooms

    def get_code(self, fullname: str) -> CodeType:
        """Return the code of the module, as importlib asks it."""
        return self._rooms.add(fullname, self.path, Path(self.path).read_text("utf-8"))


def _functions(tree: ast.Module) -> Iterator[tuple[str, Any]]:
    for node in tree.body:
        owner = node.name if isinstance(node, ast.ClassDef) else ""
        for one in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
                plain = owner and "__mutmut_" not in one.name
                yield (f"{owner}ǁ{one.name}" if plain else one.name), one


def _statement(function: ast.AST, line: int) -> Iterable[int]:
    """Return the lines of the innermost statement at a line, without the statements in it."""
    own: set[int] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0):
            lines = set(range(node.lineno, (node.end_lineno or 0) + 1))
            for child in ast.walk(node):
                if isinstance(child, ast.stmt) and child is not node:
                    lines -= set(range(child.lineno, (child.end_lineno or 0) + 1))
            if line in lines:
                own = lines
                if node is function:  # its signature: who calls it runs its first statement
                    own = set(range(node.lineno, (node.end_lineno or 0) + 1))
    return own


def load(room: str) -> tuple[Rooms, list[Test]]:
    """Import a room and its tests."""
    from twisted.internet import selectreactor

    selectreactor.install()  # an epoll descriptor would be shared by all forks
    from twisted.logger import globalLogBeginner
    from twisted.trial.runner import TestLoader

    globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)
    rooms = Rooms(room)
    sys.meta_path.insert(0, rooms)
    suite = TestLoader().loadByName(f"tests.{room}", recurse=True)
    rooms.bind()
    return rooms, [Test(case) for case in _flat(suite)]


def _flat(suite: Any) -> Iterator[Any]:
    try:
        parts = iter(suite)
    except TypeError:
        yield suite
        return
    for part in parts:
        yield from _flat(part)


def run_test(case: Any) -> bool | None:
    """Run a test: whether it passed, or None if it was skipped."""
    from twisted.trial.reporter import TestResult

    result = TestResult()
    case.run(result)
    if result.skips:
        return None
    return bool(result.wasSuccessful()) and not result.unexpectedSuccesses


def fork(work: Callable[[], int], folder: str) -> int:
    """Run something in a process of its own, in a directory of its own; return its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 3
    try:
        os.makedirs(folder, exist_ok=True)
        os.chdir(folder)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        code = work()
    finally:
        os._exit(code)


def survey(rooms: Rooms, tests: list[Test], folder: str, kept: Path, slowest: float) -> None:
    """Learn what each test takes and which lines it runs, and whether it passes."""
    if not kept.exists():
        files = {mutant.path for mutant in rooms.mutants}
        found = {}
        answer = Path(f"{folder}.answer")
        for test in tests:
            # Each in a fork, as against a mutant: what one test leaves behind saves others lines.
            pid = fork(lambda: _measure(test, files, answer, slowest), folder)  # noqa: B023
            os.waitpid(pid, 0)
            done = answer.exists()
            found[test.case.id()] = pickle.loads(answer.read_bytes()) if done else (False, 0.0, {})
            answer.unlink(missing_ok=True)
        kept.write_bytes(pickle.dumps(found))
    known = pickle.loads(kept.read_bytes())
    for test in tests:
        test.passes, test.seconds, test.lines = known[test.case.id()]


def _measure(test: Test, files: set[str], answer: Path, slowest: float) -> int:
    lines: dict[str, set[int]] = {path: set() for path in files}
    _trace(lines)
    passed = run_test(test.case)
    sys.settrace(None)
    threading.settrace(None)
    lines = {path: own for path, own in lines.items() if own}
    started = time.process_time()
    passed = passed and run_test(test.case)
    seconds = time.process_time() - started
    answer.write_bytes(pickle.dumps((bool(passed) and seconds <= slowest, seconds, lines)))
    return 0


def _trace(lines: dict[str, set[int]]) -> None:
    def enter(frame: FrameType, event: str, argument: object) -> Any:
        own = lines.get(frame.f_code.co_filename)
        if own is None:
            return None

        def step(frame: FrameType, event: str, argument: object) -> Any:
            own.add(frame.f_lineno)
            return step

        own.add(frame.f_lineno)
        return step

    threading.settrace(enter)
    sys.settrace(enter)


def attempt(mutant: Mutant, tests: list[Test], last: mmap.mmap) -> int:
    """Run tests against a mutant, in a fork: 1 if one fails, else 0.

    Args:
        mutant: The change.
        tests: Which tests, in order.
        last: Shared memory, for the number of the test that runs.
    """
    size = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    mutant.apply()
    for number, test in enumerate(tests):
        last[:4] = number.to_bytes(4, "big")
        signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT + 5 * test.seconds)
        signal.setitimer(signal.ITIMER_REAL, CLOCK_LIMIT + 10 * test.seconds)
        if not run_test(test.case):
            return 1
    return 0


def run(room: str, options: argparse.Namespace, results: Path) -> None:
    """Run the mutants of a room that have no result yet."""
    RESULTS.mkdir(exist_ok=True)
    rooms, tests = load(room)
    memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="mutants-", dir=memory if memory.is_dir() else None)
    try:
        print(f"{len(rooms.mutants)} mutants, {len(tests)} tests", flush=True)
        survey(rooms, tests, f"{folder}/survey", results.with_suffix(".survey"), options.slowest)
        for test in tests:
            if not test.passes:
                print(f"left out: {test.case.id()}, {test.seconds:.1f} s")
        tests = sorted((test for test in tests if test.passes), key=lambda test: test.seconds)
        print(f"tests take {sum(test.seconds for test in tests):.1f} s", flush=True)
        done = read(results)
        waiting = [
            mutant
            for mutant in rooms.mutants
            if options.only in mutant.name
            and done.get(mutant.name, {}).get("state") in {None, "unfinished"}
        ]
        # A run that is ended early has seen some of every module.
        random.Random(0).shuffle(waiting)
        gc.collect()
        gc.freeze()
        killers: dict[str, list[Test]] = {}
        with results.open("a") as log:
            for number, mutant in enumerate(waiting):
                own = killers.setdefault(mutant.function, [])
                print(json.dumps(_verdict(mutant, tests, own, options.budget, folder)), file=log)
                log.flush()
                if number % 200 == 0:
                    print(f"{time.strftime('%X')} {number} of {len(waiting)}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    count(results)


def _verdict(
    mutant: Mutant, tests: list[Test], killers: list[Test], budget: float, folder: str
) -> dict[str, Any]:
    reach = [test for test in tests if mutant.lines & test.lines.get(mutant.path, set())]
    # What killed a neighbour, then the tests of this module, then the others; the quickest first.
    name = f".test_{mutant.name.split('.')[2].strip('_')}"
    reach.sort(
        key=lambda test: (
            killers.index(test) if test in killers else len(killers),
            name not in test.case.id(),
        )
    )
    spent = accumulate(test.seconds for test in reach)
    chosen = [test for test, sum_ in zip(reach, spent, strict=True) if sum_ <= budget] or reach[:1]
    if not chosen:
        return {"name": mutant.name, "state": "unreached", "change": mutant.change}
    last = mmap.mmap(-1, 4)
    pid = fork(lambda: attempt(mutant, chosen, last), f"{folder}/mutant")
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    shutil.rmtree(f"{folder}/mutant", ignore_errors=True)
    if code == 0:
        state = "survived" if len(chosen) == len(reach) else "unfinished"
        return {"name": mutant.name, "state": state, "change": mutant.change}
    killer = chosen[int.from_bytes(last[:4], "big")]
    if killer in killers:
        killers.remove(killer)
    killers.insert(0, killer)
    state = "timeout" if code < 0 else {1: "killed"}.get(code, "error")
    return {"name": mutant.name, "state": state, "by": killer.case.id()}


def read(results: Path) -> dict[str, dict[str, Any]]:
    """Return the newest result of each mutant."""
    if not results.exists():
        return {}
    entries = (json.loads(line) for line in results.read_text().splitlines())
    return {entry["name"]: entry for entry in entries}


def count(results: Path) -> None:
    """Print how many mutants of each module came to which end."""
    table: dict[str, Counter[str]] = {}
    for name, entry in read(results).items():
        module = name.rpartition(".")[0]
        table.setdefault(module, Counter())[entry["state"]] += 1
    for module, states in sorted(table.items()):
        print(f"{module:36}", *(f"{state} {number}" for state, number in sorted(states.items())))
    print("all", dict(sum(table.values(), Counter())))


def show(results: Path) -> None:
    """Print what each survivor changes."""
    for name, entry in sorted(read(results).items()):
        if "change" in entry:
            print(f"# {name} {entry['state']}", *entry["change"], sep="\n")


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("do", choices=["run", "show", "count"])
    parser.add_argument("room", help="tls, listeners, store, wire")
    parser.add_argument("--only", default="", help="part of the mutants' names")
    parser.add_argument("--slowest", type=float, default=1.0, help="seconds of a test that is used")
    parser.add_argument(
        "--budget", type=float, default=1e9, help="seconds of tests for one mutant, then it waits"
    )
    options = parser.parse_args()
    results = RESULTS / f"{options.room}.jsonl"
    if options.do == "run":
        run(options.room, options, results)
    else:
        {"show": show, "count": count}[options.do](results)


if __name__ == "__main__":
    main()
