"""Scripts that complete the command ``kvtls`` in a shell, made by shtab of its parser."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

__all__ = ["SHELLS", "completion"]

SHELLS = ("bash", "zsh", "fish")

_FILES = {"FILE", "PATH"}
"""What options and arguments that take a file call it."""

_WORD = {"zsh": "_guard '^-*' value"}
"""For an argument that nobody can guess: without it zsh inserts no option in its place either."""

_LOADED_ZSH = "[[ $zsh_eval_context[-1] == eval ]]"
_SOURCED_ZSH = "[[ $zsh_eval_context[-1] == (eval|file) ]]"
"""How a script knows that it is read once, by ``source`` too, and not loaded as a function."""

_START_ZSH = """\
# Sourced before compinit was run, as in a .zshrc without it, there would be no compdef.
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
"""


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return a script that completes commands, options and files.

    Args:
        parser: That of the program.
        shell: One of `SHELLS`.
    """
    import shtab  # only here: a command has to start fast

    for action in _actions(parser):
        if action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar == "DIR":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif not action.option_strings and not action.choices:
            action.complete = _WORD  # type: ignore[attr-defined]
    script = str(shtab.complete(parser, shell)).rstrip() + "\n"
    if shell != "zsh":
        return script
    # Its first line makes it a function that zsh loads from a directory, and must stay the first.
    first, rest = script.replace(_LOADED_ZSH, _SOURCED_ZSH).split("\n", 1)
    return f"{first}\n{_START_ZSH}{rest}"


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield every option and argument, those of commands included."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)
        else:
            yield action
