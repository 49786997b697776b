"""Micro-benchmarks by name, run by pyperf: what `bench_parts` and `bench_session` share.

pyperf starts each benchmark in several processes, calibrates it, and says when a figure is not
stable; ``-o FILE`` keeps the figures and ``python -m pyperf compare_to`` compares two such files.
``--fast`` is enough for a look.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import pyperf

__all__ = ["Bench", "run"]

Bench = tuple[Callable[[], Any], int]
"""What to time, and how many operations one call is."""


def run(benches: Mapping[str, Callable[[], Bench]]) -> None:
    """Time the benchmarks that the command line asks for, everything by default.

    Args:
        benches: What makes each, by name; only those that are run are made.
    """
    runner = pyperf.Runner(add_cmdline_args=_pass_on)
    runner.argparser.add_argument(
        "words", nargs="*", metavar="WORD", help="run those whose names contain one of these"
    )
    arguments = runner.parse_args()
    for name, make in benches.items():
        if not arguments.words or any(word in name for word in arguments.words):
            call, operations = make()
            runner.bench_func(name, call, inner_loops=operations)


def _pass_on(command: list[str], arguments: argparse.Namespace) -> None:
    """Let worker processes know the words too."""
    command.extend(arguments.words)
