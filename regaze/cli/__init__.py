"""The command line: a file for each command."""

import sys


def main() -> None:
    """Entry point of the command ``regaze``."""
    try:
        # Here, so that an interrupt is answered while the commands load, too.
        from regaze.cli.commands import app

        app(prog_name="regaze")
    except KeyboardInterrupt:
        sys.stderr.write("error: stopped\n")
        raise SystemExit(130) from None
