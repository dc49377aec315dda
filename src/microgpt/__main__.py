"""Run the command line: `python -m microgpt`, and the command `microgpt`."""

import os
import signal
import sys


def main() -> int:
    """Run the command line with the arguments of the process; return the exit code.

    Ctrl-C shows no traceback. The command reports it with exit code 130; while modules are
    imported, and after the command, it ends the process as the system does.
    """
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        try:
            if ours:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
            for name in ("stdout", "stderr"):
                if getattr(sys, name) is None:  # closed from the start, or without a console
                    setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
            try:
                from .cli import run_command
            except (ImportError, ValueError) as error:  # the environment asks for the unusable
                print(f"microgpt: {error}", file=sys.stderr)
                return 2

            if ours:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            return run_command()
        finally:
            if ours:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt:  # before or after what the command itself reports
        return 130


if __name__ == "__main__":
    sys.exit(main())
