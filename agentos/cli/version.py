"""`agentos version`."""

from __future__ import annotations

import platform

import click

from agentos import __version__, wire
from agentos.cli.output import print_json


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def version(as_json: bool) -> None:
    """Print the version of agentos, of its protocol and of Python."""
    if as_json:
        print_json({"agentos": __version__, "protocol": wire.VERSION, "python": platform.python_version()})
    else:
        print(f"agentos {__version__}, protocol {wire.VERSION}, Python {platform.python_version()}")
