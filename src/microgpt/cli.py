"""The command line: results on stdout, progress on stderr.

Exit codes: 0 done, 1 the run failed, 2 wrong usage or input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn, TextIO

from tqdm import tqdm

from . import __version__
from .adam import linear_decay
from .core import BACKEND, BACKEND_REASON
from .data import DownloadError, describe, load_documents
from .sampling import generate
from .training import Run, prepare, train_step

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _whole(minimum: int | None) -> type:
    """Return an argparse type for whole numbers from minimum upwards."""

    def whole(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if minimum is not None and number < minimum:
            raise argparse.ArgumentTypeError(f"{number} is below {minimum}")
        return number

    return whole  # type: ignore[return-value]


def _not_negative(text: str) -> float:
    """Return text as a finite number of 0 or more; an argparse type."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number of 0 or more")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="microgpt",
        description="Train a small GPT on a list of names or other short texts, and invent more.",
        epilog="example: microgpt train --data names.txt --steps 2000",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"microgpt {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_train(commands)
    return parser


def _add_train(commands: argparse._SubParsersAction[_Parser]) -> None:
    train = commands.add_parser(
        "train",
        help="train a model and print samples of it",
        description="Train a GPT from scratch, one document a step, and print samples of it.",
        epilog="example: microgpt train --data names.txt --n-embd 32 --log losses.jsonl",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    data = train.add_argument_group("data")
    data.add_argument(
        "--data",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="a UTF-8 text file, one document a line; or makemore: the original's 32,033 names, "
        "downloaded once (default: the bundled names)",
    )
    model = train.add_argument_group("model")
    size = _whole(1)
    model.add_argument("--n-layer", type=size, default=1, metavar="N", help="layers")
    model.add_argument(
        "--n-embd", type=size, default=16, metavar="N", help="width, a multiple of --n-head"
    )
    model.add_argument("--n-head", type=size, default=4, metavar="N", help="attention heads")
    model.add_argument(
        "--block-size", type=size, default=16, metavar="N", help="longest context, in tokens"
    )
    training = train.add_argument_group("training")
    training.add_argument("--steps", type=_whole(0), default=1000, metavar="N", help="steps")
    training.add_argument(
        "--batch-size", type=size, default=1, metavar="N", help="documents a step"
    )
    training.add_argument(
        "--seed",
        type=_whole(None),
        default=42,
        metavar="N",
        help="start of the random generator; the same seed gives the same run",
    )
    training.add_argument(
        "--lr",
        type=_not_negative,
        default=0.01,
        metavar="X",
        help="learning rate of the first step; it falls to 0 in a straight line",
    )
    training.add_argument(
        "--log",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="write a line of JSON a step: step, loss, lr",
    )
    samples = train.add_argument_group("samples")
    samples.add_argument(
        "--temperature",
        type=_not_negative,
        default=0.5,
        metavar="X",
        help="0 takes the likeliest token, 1 draws as the model predicts",
    )
    samples.add_argument(
        "--samples", type=_whole(0), default=20, metavar="N", help="how many to print"
    )
    train.set_defaults(run=_train)


def run_command(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code. argv: the arguments; None: those of the process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without é shows it as \xe9
            stream.reconfigure(errors="backslashreplace")
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as exit:
        return int(exit.code or 0)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()  # a closed pipe shows here, not while Python exits
        return code
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, "interrupted")
    except BrokenPipeError:  # the reader, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except DownloadError as error:
        return _fail(FAILED, str(error))
    except _WrongInput as error:
        return _fail(WRONG_INPUT, str(error))
    except (FloatingPointError, OSError) as error:
        return _fail(FAILED, str(error))
    except MemoryError as error:
        return _fail(FAILED, str(error) or "not enough memory")


class _WrongInput(Exception):
    """What the user gave cannot be used; the message says why."""


@contextmanager
def _user_input() -> Iterator[None]:
    """Turn errors about the user's input into _WrongInput."""
    try:
        yield
    except DownloadError:
        raise
    except (OSError, ValueError) as error:
        raise _WrongInput(str(error)) from None


def _fail(code: int, message: str) -> int:
    print(f"microgpt: {message}", file=sys.stderr)
    return code


def _train(arguments: argparse.Namespace) -> int:
    source = getattr(arguments, "data", None)
    with _user_input():
        run = prepare(
            load_documents(source),
            arguments.steps,
            arguments.seed,
            arguments.lr,
            arguments.n_layer,
            arguments.n_embd,
            arguments.n_head,
            arguments.block_size,
            arguments.batch_size,
        )
    with _open_log(getattr(arguments, "log", None), source) as log:
        _print_start(run, source)
        _take_steps(run, log)
    if run.losses:
        print(f"step {run.steps:4} / {run.steps:4} | loss {run.losses[-1]:.4f}")
    _print_samples(run, arguments.samples, arguments.temperature)
    return DONE


@contextmanager
def _open_log(path: str | None, source: str | None) -> Iterator[TextIO | None]:
    """Open the log for writing, if one is wanted and it is not the data itself."""
    if path is None:
        yield None
        return
    with _user_input():
        if source is not None and os.path.exists(path) and os.path.exists(source):
            if os.path.samefile(path, source):
                raise ValueError(f"{path}: the log would overwrite the data")
        log = open(path, "w", encoding="utf-8")
    with log:
        yield log


def _print_start(run: Run, source: str | None) -> None:
    print(f"core: {BACKEND} ({BACKEND_REASON})")
    print(f"data: {describe(source)}")
    print(f"num docs: {len(run.documents)}")
    print(f"vocab size: {run.tokenizer.vocab_size}")
    print(f"num params: {run.model.num_params}")
    if run.num_cut:
        block_size = run.model.config.block_size
        print(f"cut: {run.num_cut} documents do not fit into block size {block_size}")
    sys.stdout.flush()


def _take_steps(run: Run, log: TextIO | None) -> None:
    """Train to the end, with a progress line on a terminal and a line a step in the log."""
    with tqdm(total=run.steps, unit=" steps", disable=None, dynamic_ncols=True) as bar:
        for step in range(run.steps):
            loss = train_step(run)
            if log is not None:
                lr = linear_decay(run.lr, step, run.steps)
                log.write(json.dumps({"step": step + 1, "loss": loss, "lr": lr}) + "\n")
            if not bar.disable:
                bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
                bar.update()


def _print_samples(run: Run, n: int, temperature: float) -> None:
    known = set(run.documents)
    if n:
        print("--- inference (new, hallucinated names) ---")
    for i, document in enumerate(generate(run, n, temperature), start=1):
        mark = "  (in the training data)" if document in known else ""
        print(f"sample {i:2}: {document}{mark}")
