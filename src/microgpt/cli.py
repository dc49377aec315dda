"""The command line: results on stdout, progress on stderr.

Exit codes: 0 done, 1 the run failed, 2 wrong usage or input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import platform
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from random import Random
from reprlib import repr as shorten
from typing import Any, NoReturn, TextIO

from tqdm import tqdm

from . import __version__
from .checkpoint import Checkpoint, load, save
from .core import BACKEND, BACKEND_REASON
from .data import (
    BUNDLED,
    SPLITS,
    DownloadError,
    cache_folder,
    describe,
    load_documents,
    printable,
    reason,
    windows,
)
from .evaluate import Score, bigram_loss, mean_loss, score, uniform_loss
from .sampling import generate
from .training import Run, finish, prepare, resume

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _whole(minimum: int | None, maximum: int = 10**12) -> type:
    """Return an argparse type for whole numbers from minimum to maximum."""

    def whole(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{shorten(text)} is not a whole number") from None
        if minimum is not None and number < minimum:
            raise argparse.ArgumentTypeError(f"{shorten(number)} is below {minimum}")
        if minimum is not None and number > maximum:
            raise argparse.ArgumentTypeError(f"{shorten(number)} is above {maximum}")
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


# What belongs to a run, and cannot change while it lasts, with its defaults.
_SIZES = {"n_layer": 1, "n_embd": 16, "n_head": 4, "block_size": 16}
_COURSE = {"steps": 1000, "seed": 42, "lr": 0.01, "batch_size": 1, "val_fraction": 0.0}
_RUN = {**_SIZES, **_COURSE, "split": "lines"}


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="microgpt",
        description="Train a small GPT on a list of names or other short texts, and invent more.",
        epilog="example: microgpt train --data names.txt --steps 2000 --out names.safetensors",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"microgpt {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_train(commands)
    _add_sample(commands)
    _add_eval(commands)
    _add_score(commands)
    info = commands.add_parser(
        "info",
        help="tell the version, the core in use and the platform",
        description="Tell what a report of a problem should tell: version, core, platform.",
        epilog="example: microgpt info",
        allow_abbrev=False,
    )
    info.set_defaults(run=_info)
    return parser


def _option(
    group: argparse._ArgumentGroup, flag: str, help: str, default: object = None, **settings: Any
) -> None:
    """Add an option that is absent from the arguments unless it was given."""
    shown = help if default is None else f"{help} (default: {default})"
    group.add_argument(flag, help=shown, default=argparse.SUPPRESS, **settings)


def _add_train(commands: argparse._SubParsersAction[_Parser]) -> None:
    train = commands.add_parser(
        "train",
        help="train a model and print samples of it",
        description="Train a GPT, one document a step, and print samples of it. "
        "With --out it is kept; with --resume a run that was kept goes on.",
        epilog="example: microgpt train --data names.txt --n-embd 32 --log losses.jsonl",
        allow_abbrev=False,
    )
    whole, size = _whole(0), _whole(1, 10**6)  # a slip of the finger must not fill the memory
    data = train.add_argument_group("data")
    _option(
        data,
        "--data",
        "a UTF-8 text file; or makemore: the original's 32,033 names, downloaded once "
        "(default: the bundled names)",
        metavar="FILE",
    )
    _option(
        data,
        "--split",
        "documents end at line ends, at blank lines, or the text is one stream, of which each step "
        "takes windows of --block-size characters",
        _RUN["split"],
        choices=SPLITS,
    )
    _option(
        data,
        "--val-fraction",
        "part of the documents kept for validation, after duplicates are removed; of a stream, "
        "its end",
        _RUN["val_fraction"],
        type=_not_negative,
        metavar="X",
    )
    model = train.add_argument_group("model")
    for name, help in (
        ("n_layer", "layers"),
        ("n_embd", "width, a multiple of --n-head"),
        ("n_head", "attention heads"),
        ("block_size", "longest context, in tokens"),
    ):
        flag = _flag(name)
        _option(model, flag, help, _SIZES[name], type=size, metavar="N")
    _option(
        model,
        "--init",
        "start from the parameters of this model, with its sizes and its alphabet",
        metavar="MODEL",
    )
    training = train.add_argument_group("training")
    _option(training, "--steps", "steps", _RUN["steps"], type=whole, metavar="N")
    _option(training, "--batch-size", "documents a step", 1, type=size, metavar="N")
    _option(
        training,
        "--seed",
        "start of the random generator; the same seed gives the same run",
        _RUN["seed"],
        type=_whole(None),
        metavar="N",
    )
    _option(
        training,
        "--lr",
        "learning rate of the first step; it falls to 0 in a straight line",
        _RUN["lr"],
        type=_not_negative,
        metavar="X",
    )
    keep = train.add_argument_group("keeping the model")
    _option(
        keep,
        "--out",
        "save the run as this safetensors file, at the end and when it is interrupted",
        metavar="MODEL",
    )
    _option(keep, "--save-every", "save after every N steps too", type=size, metavar="N")
    _option(
        keep,
        "--snapshots",
        "of each save keep a copy with its step in the name",
        action="store_true",
    )
    _option(
        keep,
        "--resume",
        "continue this run; it is saved there again unless --out is given, and what belongs to "
        "the run cannot change",
        metavar="MODEL",
    )
    watch = train.add_argument_group("watching it learn")
    _option(
        watch,
        "--log",
        "write a line of JSON a step: step, loss, lr, tokens, seconds, val_loss",
        metavar="FILE",
    )
    _option(
        watch,
        "--eval-every",
        "measure the validation loss after every N steps, not only after the last",
        type=size,
        metavar="N",
    )
    _option(watch, "--sample-every", "print 5 samples after every N steps", type=size, metavar="N")
    samples = train.add_argument_group("samples")
    _add_temperature(samples)
    _option(samples, "--samples", "how many to print at the end", 20, type=whole, metavar="N")
    train.set_defaults(run=_train)


def _add_temperature(group: argparse._ArgumentGroup) -> None:
    _option(
        group,
        "--temperature",
        "0 takes the likeliest token, 1 draws as the model predicts",
        0.5,
        type=_not_negative,
        metavar="X",
    )


def _add_sample(commands: argparse._SubParsersAction[_Parser]) -> None:
    sample = commands.add_parser(
        "sample",
        help="invent documents with a model that was kept",
        description="Print new documents of a saved model, one a line. Without --seed they are "
        "those that the training printed.",
        epilog="example: microgpt sample names.safetensors --prompt em -n 5",
        allow_abbrev=False,
    )
    sample.add_argument("model", metavar="MODEL", help="a file that microgpt train --out wrote")
    what = sample.add_argument_group("what to print")
    _option(what, "-n", "how many", 20, type=_whole(0), metavar="N")
    _option(what, "--prompt", "what each begins with", metavar="TEXT")
    _option(
        what,
        "--length",
        "most characters of each; beyond block size the model sees the last ones only "
        "(default: block size)",
        type=_whole(1),
        metavar="N",
    )
    _option(
        what, "--new", "leave out what stands in the training data", action="store_true"
    )
    _option(
        what,
        "--data",
        "the training data, for --new (default: the file that the training read)",
        metavar="FILE",
    )
    _option(what, "--json", "print an object a line, with the text", action="store_true")
    how = sample.add_argument_group("how to draw")
    _add_temperature(how)
    _option(how, "--top-k", "from the N likeliest tokens only", type=_whole(1), metavar="N")
    _option(
        how,
        "--top-p",
        "from the likeliest tokens only, as many as together have probability X",
        type=_not_negative,
        metavar="X",
    )
    _option(
        how,
        "--seed",
        "start of the random generator (default: the run's own goes on)",
        type=_whole(None),
        metavar="N",
    )
    sample.set_defaults(run=_sample)


def _add_eval(commands: argparse._SubParsersAction[_Parser]) -> None:
    evaluate = commands.add_parser(
        "eval",
        help="measure the loss of a model on documents",
        description="Print the mean loss of a saved model over all positions of documents, and "
        "two baselines for scale: guessing, and a bigram table of the training data.",
        epilog="example: microgpt eval names.safetensors --data others.txt",
        allow_abbrev=False,
    )
    evaluate.add_argument("model", metavar="MODEL", help="a file that microgpt train --out wrote")
    data = evaluate.add_argument_group("data")
    _option(
        data,
        "--data",
        "the documents, split as those of the training were (default: the validation part of "
        "the run)",
        metavar="FILE",
    )
    evaluate.set_defaults(run=_eval)


def _add_score(commands: argparse._SubParsersAction[_Parser]) -> None:
    scores = commands.add_parser(
        "score",
        help="tell how likely a model finds texts, token by token",
        description="Print the loss of each text, at each position and in total, and the tokens "
        "that the model finds most likely there.",
        epilog="example: microgpt score names.safetensors emma olivia",
        allow_abbrev=False,
    )
    scores.add_argument("model", metavar="MODEL", help="a file that microgpt train --out wrote")
    scores.add_argument("texts", metavar="TEXT", nargs="+", help="a text to score")
    what = scores.add_argument_group("what to print")
    _option(what, "--top", "how many of the likeliest tokens", 3, type=_whole(0), metavar="N")
    _option(what, "--json", "print an object a line", action="store_true")
    scores.set_defaults(run=_score)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


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
    except KeyboardInterrupt as interrupt:
        return _fail(INTERRUPTED, str(interrupt) or "interrupted")
    except BrokenPipeError:  # the reader, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except DownloadError as error:
        return _fail(FAILED, str(error))
    except _WrongInput as error:
        return _fail(WRONG_INPUT, str(error))
    except (FloatingPointError, OSError) as error:
        return _fail(FAILED, _message(error))
    except MemoryError as error:
        return _fail(FAILED, str(error) or "not enough memory")


def _message(error: Exception) -> str:
    """Return what went wrong, and with which file, as one line."""
    path = getattr(error, "filename", None)
    return reason(error) if path is None else f"{printable(os.fsdecode(path))}: {reason(error)}"


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
        raise _WrongInput(_message(error)) from None


def _fail(code: int, message: str) -> int:
    print(f"microgpt: {message}", file=sys.stderr)
    return code


def _train(arguments: argparse.Namespace) -> int:
    options = vars(arguments)
    out, log_file = options.get("out", options.get("resume")), options.get("log")
    with _user_input():
        _check_options(options, out)
        run = _resumed(options) if "resume" in options else _prepared(options)
        if "eval_every" in options and not run.validation:
            raise ValueError("--eval-every needs --val-fraction")
        _check_files({"data": run.dataset, "log": log_file, "model": out})
        log = _open_log(log_file, run.adam.step if "resume" in options else None)
    try:
        _print_start(run, options)
        val_loss = _take_steps(run, options, out, log)
    finally:
        if log is not None:
            log.close()
    if run.losses:
        print(_progress(run, run.losses[-1], val_loss))
    _print_samples(run, options.get("samples", 20), options.get("temperature", 0.5))
    return DONE


def _check_options(options: Mapping[str, Any], out: str | None) -> None:
    """Raise ValueError at options that do not go together."""
    if "resume" in options and "init" in options:
        raise ValueError("--resume continues a run, --init starts one: give one of them")
    for name in ("save_every", "snapshots"):
        if name in options and out is None:
            raise ValueError(f"{_flag(name)} needs --out")
    if "snapshots" in options and "save_every" not in options:
        raise ValueError("--snapshots needs --save-every")


def _check_files(files: Mapping[str, str | None]) -> None:
    """Raise an error if what is written would overwrite something, or has no folder."""
    named = [(what, path) for what, path in files.items() if path is not None]
    for i, (what, path) in enumerate(named):
        for written, other in named[i + 1 :]:
            if os.path.realpath(path) == os.path.realpath(other) or (
                os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other)
            ):
                raise ValueError(f"{other}: the {written} would overwrite the {what}")
    out = files["model"]
    if out is not None and os.path.isdir(out):
        raise IsADirectoryError(f"{out}: is a folder, not a file")
    if out is not None and not os.path.isdir(os.path.dirname(os.path.realpath(out))):
        raise FileNotFoundError(f"{out}: its folder does not exist")


def _prepared(options: Mapping[str, Any]) -> Run:
    """Return the new run that the options ask for."""
    source = options.get("data")
    settings = {name: options.get(name, default) for name, default in _RUN.items()}
    init = None
    if "init" in options:
        init = load(options["init"])
        _check_unchanged(options, vars(init.model.config), _SIZES, options["init"])
    run = prepare(load_documents(source, settings["split"]), init=init, **settings)
    run.dataset = BUNDLED if source is None else source
    return run


def _resumed(options: Mapping[str, Any]) -> Run:
    """Return the run that the options ask to continue."""
    path = options["resume"]
    saved = load(path)
    _check_unchanged(options, {**vars(saved), **vars(saved.model.config)}, _RUN, path)
    return _with_documents(saved, path, options.get("data"))


def _check_unchanged(
    options: Mapping[str, Any], fixed: Mapping[str, Any], names: Mapping[str, Any], path: str
) -> None:
    for name in names:
        if options.get(name, fixed[name]) != fixed[name]:
            raise ValueError(f"{_flag(name)} {options[name]}: {path} has {fixed[name]}")


def _with_documents(saved: Checkpoint, path: str, source: str | None) -> Run:
    """Return a saved run with its documents, from source or where it had them from."""
    if source is None and not saved.dataset:
        raise ValueError(f"{path} does not tell where its data is: give --data")
    source = saved.dataset if source is None else source
    documents = load_documents(source, saved.split)
    try:
        run = resume(documents, saved)
    except ValueError as error:
        raise ValueError(f"{describe(source)}: {error}") from None
    run.dataset = source
    return run


def _open_log(path: str | None, step: int | None) -> TextIO | None:
    """Open the log, if one is wanted; of an older one keep the lines up to a step, if given."""
    if path is None:
        return None
    if step is None or not os.path.exists(path):
        return open(path, "w", encoding="utf-8")
    start, kept = b'{"step": ', 0
    with open(path, "r+b") as file:
        for line in file:
            whole = re.match(start + rb"([0-9]{1,18}),.*\n", line)
            if whole is None and (line.endswith(b"\n") or line[: len(start)] != start[: len(line)]):
                raise ValueError(f"{printable(path)}: is not the log of a run")
            if whole is None or int(whole[1]) > step:
                break  # what a killed run has left unfinished, or what is to be done again
            kept += len(line)
        file.truncate(kept)
    return open(path, "a", encoding="utf-8")


def _print_start(run: Run, options: Mapping[str, Any]) -> None:
    print(f"core: {BACKEND} ({BACKEND_REASON})")
    print(f"data: {describe(run.dataset)}")
    for name in ("init", "resume"):
        if name in options:
            print(f"{name}: {options[name]} (step {run.adam.step} / {run.steps})")
    if run.split == "stream":
        print(f"num characters: {len(run.documents[0])}")
    else:
        print(f"num docs: {len(run.documents)}")
    print(f"vocab size: {run.tokenizer.vocab_size}")
    print(f"num params: {run.model.num_params}")
    if run.num_cut:
        block_size = run.model.config.block_size
        print(f"longer than block size {block_size}, and cut: {run.num_cut}")
    if run.validation:
        kind = "windows" if run.split == "stream" else "docs"
        print(f"validation: {len(run.validation)} {kind}")
        uniform, bigram = _baselines(run, [run.encode(doc) for doc in run.validation])
        print(f"baselines: uniform {uniform:.4f} | bigram {bigram:.4f}")
    sys.stdout.flush()


def _baselines(run: Run, docs: Sequence[Sequence[int]]) -> tuple[float, float]:
    training = [run.encode(doc) for doc in run.documents]
    return uniform_loss(run.model), bigram_loss(run.model, training, docs)


def _progress(run: Run, loss: float, val_loss: float | None) -> str:
    """Return the line that tells where a run is."""
    line = f"step {run.adam.step:4} / {run.steps:4} | loss {loss:.4f}"
    return line if val_loss is None else f"{line} | val loss {val_loss:.4f}"


def _take_steps(
    run: Run, options: Mapping[str, Any], out: str | None, log: TextIO | None
) -> float | None:
    """Train to the end, with all that is to happen on the way; return the last validation loss.

    A progress line is shown on a terminal.
    """
    save_every, sample_every = options.get("save_every", 0), options.get("sample_every", 0)
    val_loss = None
    start, left = run.adam.step, run.steps
    bar = tqdm(total=left, initial=start, unit=" steps", disable=None, dynamic_ncols=True)

    def keep() -> None:
        if log is not None:
            log.flush()  # so that the log is never behind the file
        if out is not None:
            save(run, out)
            if "snapshots" in options:
                stem, end = os.path.splitext(out)
                save(run, f"{stem}-{run.adam.step:06}{end}")

    def after_step(step: int, metrics: Mapping[str, float]) -> None:
        nonlocal val_loss
        if log is not None:
            line = {"step": step, **metrics, "seconds": round(metrics["seconds"], 6)}
            log.write(json.dumps(line, allow_nan=False) + "\n")
        val_loss = metrics.get("val_loss")
        if val_loss is not None and step < run.steps:
            bar.write(_progress(run, metrics["loss"], val_loss))
        if sample_every and step % sample_every == 0:
            # from a generator of their own: they show the same dice thrown by another model
            few = generate(run, 5, options.get("temperature", 0.5), Random(run.seed))
            bar.write(f"step {step:4} / {run.steps:4} | {' '.join(few)}")
        if save_every and step % save_every == 0 and step < run.steps:
            keep()
        if not bar.disable:
            bar.set_postfix_str(f"loss {metrics['loss']:.4f}", refresh=False)
            bar.update()
        if interrupts:
            keep()
            raise KeyboardInterrupt(f"interrupted at step {step}, saved as {out}")

    with bar, _interrupts_wait(out is not None) as interrupts:
        finish(run, options.get("eval_every", 0), after_step)
        keep()
        if interrupts:  # it came after the last step
            raise KeyboardInterrupt
    if run.validation and run.adam.step == start:  # resumed when all steps were taken
        val_loss = run.val_loss()
    return val_loss


@contextmanager
def _interrupts_wait(wanted: bool) -> Iterator[list[int]]:
    """Give a list that receives the first interrupt, so that the step can end; the next raises."""
    received: list[int] = []

    def receive(number: int, _: object) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

    if not wanted or threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = signal.signal(signal.SIGINT, receive)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)


def _print_samples(run: Run, n: int, temperature: float) -> None:
    known = set(run.documents)
    if n:
        print("--- inference (new, hallucinated names) ---")
    for i, document in enumerate(generate(run, n, temperature), start=1):
        mark = "  (in the training data)" if document in known else ""
        print(f"sample {i:2}: {document}{mark}")


def _sample(arguments: argparse.Namespace) -> int:
    options = vars(arguments)
    n = options.get("n", 20)
    names = ("temperature", "top_k", "top_p", "prompt", "length")
    draw = {name: options[name] for name in names if name in options}
    known: set[str] = set()
    texts: list[str] = []
    tried = 0
    with _user_input():
        saved = load(arguments.model)
        if "new" in options:
            known.update(_with_documents(saved, arguments.model, options.get("data")).documents)
        rng = Random(options["seed"]) if "seed" in options else saved.rng
        while len(texts) < n and tried < 100 * n:  # it may know nothing else
            few = generate(saved, n - len(texts), rng=rng, **draw)
            tried += len(few)
            texts += [text for text in few if text not in known]
    for text in texts:
        print(json.dumps({"text": text}) if "json" in options else text)
    if len(texts) < n:
        return _fail(FAILED, f"only {len(texts)} of {tried} samples are new")
    return DONE


def _eval(arguments: argparse.Namespace) -> int:
    source = vars(arguments).get("data")
    with _user_input():
        saved = load(arguments.model)
        try:
            run = _with_documents(saved, arguments.model, None)
            why = ""
        except (OSError, ValueError) as error:
            if source is None:
                raise
            run, why = None, str(error)
        if source is not None:
            docs = load_documents(source, saved.split)
        elif run is not None and run.validation:
            docs = run.validation
        else:
            raise ValueError(f"{arguments.model} has no validation part: give --data")
        if saved.split == "stream":
            docs = [w for text in docs for w in windows(text, saved.model.config.block_size)]
        ids = [saved.encode(doc) for doc in docs]
    print(f"data: {describe(saved.dataset if source is None else source)}")
    print(f"num docs: {len(docs)}")
    if run is not None and source is not None and saved.split != "stream":
        known = set(run.documents)
        print(f"in the training data: {sum(doc in known for doc in docs)}")
    block_size = saved.model.config.block_size
    if cut := sum(len(doc) - 1 > block_size for doc in ids):
        print(f"longer than block size {block_size}, and cut: {cut}")
    print(f"loss: {mean_loss(saved.model, ids):.4f}")
    print(f"uniform: {uniform_loss(saved.model):.4f}")
    print(f"bigram: {_baselines(run, ids)[1]:.4f}" if run is not None else f"bigram: - ({why})")
    return DONE


def _score(arguments: argparse.Namespace) -> int:
    options = vars(arguments)
    with _user_input():
        saved = load(arguments.model)
        top = options.get("top", 3)
        scores = [score(saved.model, saved.encode(text), top) for text in arguments.texts]
    alphabet = [*saved.tokenizer.chars, None]  # None is BOS, which ends a document
    for text, positions in zip(arguments.texts, scores, strict=True):
        show = _json if "json" in options else _table
        print(show(text, positions, alphabet))
    return DONE


def _json(text: str, positions: Sequence[Score], alphabet: Sequence[str | None]) -> str:
    total = math.fsum(position.loss for position in positions)
    tokens = [
        {
            "token": alphabet[position.target],
            "loss": position.loss,
            "likely": [{"token": alphabet[i], "probability": p} for i, p in position.likely],
        }
        for position in positions
    ]
    line = {"text": text, "loss": total / len(positions), "total": total, "positions": tokens}
    return json.dumps(line, allow_nan=False)


def _table(text: str, positions: Sequence[Score], alphabet: Sequence[str | None]) -> str:
    total = math.fsum(position.loss for position in positions)
    lines = [f"{text}: loss {total / len(positions):.4f} a position, {total:.4f} in total"]
    for i, position in enumerate(positions, start=1):
        likely = "  ".join(f"{_shown(alphabet[j])} {p:.3f}" for j, p in position.likely)
        target = _shown(alphabet[position.target])
        lines.append(f"{i:4}  {target:5}  {position.loss:7.4f}  | {likely}".rstrip())
    return "\n".join(lines)


def _shown(token: str | None) -> str:
    """Return a token as a table shows it."""
    if token is None:
        return "(end)"
    return token if token.isprintable() and not token.isspace() else repr(token)


def _info(arguments: argparse.Namespace) -> int:
    level = "none (plain Python)"
    if BACKEND == "cython":
        level = import_module(f"{__package__}._core")._level()
    print(f"microgpt {__version__}")
    print(f"installed in: {os.path.dirname(os.path.abspath(__file__))}")
    print(f"core: {BACKEND} ({BACKEND_REASON})")
    print(f"instruction set: {level}")
    print(f"python: {platform.python_implementation()} {platform.python_version()}")
    print(f"platform: {platform.platform()}")
    print(f"cache folder: {cache_folder()}")
    return DONE
