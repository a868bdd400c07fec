"""What the commands of both packages share: one-line errors, exit codes, imports of just the command that runs."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Container, Sequence
from importlib import import_module
from typing import NoReturn

from clada.errors import CladaError

MISTAKE = 2

MOST_THREADS = 1024

# What is wrong with a path that a user gave; anything else is a bug.
PATH_ERRORS = (
    errno.EACCES,
    errno.EROFS,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.EBUSY,
)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where help is, and exit with code 2."""
        self.exit(MISTAKE, f"{self.prog}: {' '.join(message.split())}; see '{self.prog} --help'\n")


# name -> (help in a line, function that adds the command's options); the command itself is `<package>.<name>.main`.
Commands = dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]]


def run(
    package: str, description: str, commands: Commands, argv: Sequence[str] | None = None, *, resumes: Container[str]
) -> int:
    """Parse a command line and run the command.

    Args:
        package: the program's and the package's name.
        description: for `--help`.
        commands: the subcommands; only the module of the one that runs is imported, so that help is instant.
        argv: arguments; None: those of the process.
        resumes: the commands that go on from finished files after an interruption.

    Returns:
        exit code: 0, or 2 after a mistake of the user, a full disk or an interruption, each said in one line.
    """
    parser = Parser(prog=package, description=description)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (summary, add_arguments) in commands.items():
        sub = subparsers.add_parser(name, help=summary, description=summary)
        add_arguments(sub)
    args = parser.parse_args(argv)
    again = "the same command goes on from the finished files" if args.command in resumes else "nothing was written"
    try:
        import_module(f"{package}.{args.command}").main(args)
        sys.stdout.flush()
        return 0
    except CladaError as mistake:
        return refuse(package, str(mistake))
    except KeyboardInterrupt:
        return refuse(package, f"interrupted; {again}")
    except BrokenPipeError:
        # The reader has gone (`clada generate | head`); what Python still holds for it goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            return refuse(package, "the disk is full; make room, then run the same command again")
        if problem.errno in PATH_ERRORS:
            name = problem.filename2 or problem.filename  # of a renaming: what the user named, not the temporary file
            return refuse(package, f"cannot use {name}: {problem.strerror}; check the path and its permissions")
        raise


def refuse(package: str, message: str) -> int:
    """Say a mistake of the user in one line; returns the exit code."""
    print(f"{package}: {' '.join(message.split())}", file=sys.stderr)
    return MISTAKE


def positive_int(text: str) -> int:
    """A whole number of at least 1."""
    return whole_number(text, 1)


def thread_count(text: str) -> int:
    """So many threads as a machine may have: far more end in a crash of the libraries that make them."""
    value = positive_int(text)
    if value > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"'{text}' are more than {MOST_THREADS:,} threads")
    return value


def whole_number(text: str, least: int = 0) -> int:
    """A whole number that is not below another one."""
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value < 2**31:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least {least}, below 2^31")
    return value


def numbers(text: str) -> tuple[float, ...]:
    """Numbers with commas between them."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of numbers like 0.25,0.5") from None
