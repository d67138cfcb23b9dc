"""Commands of a script, each with flags of its own; nothing heavy is imported."""

import argparse
from collections.abc import Callable, Iterable


def add_commands(
    parser: argparse.ArgumentParser,
    commands: Iterable[tuple[str, Callable, Callable, str]],
) -> None:
    """Give a script commands with flags of their own.

    Args:
        parser: Of the script.
        commands: Name, what adds its flags, what runs it (as ``args.run``), and its help, whose
            first line stands in the list of commands.
    """
    places = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, add_flags, run, text in commands:
        command = places.add_parser(
            name,
            help=text.split("\n")[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        add_flags(command)
        command.set_defaults(run=run, error=command.error)
