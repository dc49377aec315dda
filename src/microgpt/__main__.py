"""Run the command line: `python -m microgpt`, and the command `microgpt`."""

import os
import sys


def main() -> int:
    """Run the command line with the arguments of the process; return the exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed from the start, or a window without a console
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
    try:
        from .cli import run_command
    except (ImportError, ValueError) as error:  # the environment asks for something unusable
        print(f"microgpt: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130

    return run_command()


if __name__ == "__main__":
    sys.exit(main())
