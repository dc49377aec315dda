"""The commands: results on stdout, progress on stderr.

Exit codes: 0 done, 1 the run failed, 2 wrong usage or input, 130 interrupted.
"""

from __future__ import annotations

import io
import json
import math
import os
import platform
import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from random import Random
from typing import Any, TextIO

from tqdm import tqdm

from . import __version__
from .checkpoint import load, save
from .core import BACKEND, BACKEND_REASON
from .data import (
    BUNDLED,
    DownloadError,
    cache_folder,
    checksum,
    describe,
    load_documents,
    windows,
)
from .evaluate import Score, bigram_loss, mean_loss, score, uniform_loss
from .files import one_line, printable, reason
from .model import Config
from .options import given, parse
from .sampling import generate
from .training import Run, TrainConfig, prepare, steps

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


def run_command(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code. argv: the arguments; None: those of the process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without é shows it as \xe9
            stream.reconfigure(errors="backslashreplace")
    try:
        options = parse(argv)
    except SystemExit as exit:
        return int(exit.code or 0)
    try:
        code = COMMANDS[options.command](options)
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
    print(f"microgpt: {one_line(message)}", file=sys.stderr)
    return code


def _train(options: Namespace) -> int:
    out = options.out if options.out is not None else options.resume
    with _user_input():
        _check_options(options, out)
        run = _prepared(options) if options.resume is None else _resumed(options)
        generate(run, min(options.samples, 0), options.temperature)  # refuses what is no number
        if options.eval_every and not run.validation:
            raise ValueError("--eval-every needs --val-fraction")
        _check_files({"data": run.dataset, "log": options.log, "model": out})
        log = _open_log(options.log, run.adam.step if options.resume is not None else None)
    try:
        _print_start(run, options)
        val_loss = _take_steps(run, options, out, log)
    finally:
        if log is not None:
            log.close()
    if run.losses:
        print(_progress(run, run.losses[-1], val_loss))
    _print_samples(run, options.samples, options.temperature)
    return DONE


def _check_options(options: Namespace, out: str | None) -> None:
    """Raise ValueError at options that exclude or need each other."""
    if options.resume is not None and options.init is not None:
        raise ValueError("--resume continues a run, --init starts one: give one of them")
    for name in ("save_every", "snapshots"):
        if getattr(options, name) and out is None:
            raise ValueError(f"{_flag(name)} needs --out")
    if options.snapshots and not options.save_every:
        raise ValueError("--snapshots needs --save-every")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


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


def _prepared(options: Namespace) -> Run:
    """Return the new run that the options ask for."""
    settings, sizes = given(options, TrainConfig), given(options, Config)
    init = None
    if options.init is not None:
        init = load(options.init)
        _check_unchanged(sizes, vars(init.model.config), options.init)
    docs = load_documents(options.data, settings.get("unit", "line"))
    run = prepare(docs, init=init, **settings, **sizes)
    run.dataset = BUNDLED if options.data is None else options.data
    return run


def _resumed(options: Namespace) -> Run:
    """Return the run that the options ask to continue."""
    saved = load(options.resume)
    _check_unchanged(given(options, TrainConfig), vars(saved.config), options.resume)
    _check_unchanged(given(options, Config), vars(saved.model.config), options.resume)
    return _with_documents(saved, options.resume, options.data)


def _check_unchanged(settings: Mapping[str, Any], fixed: Mapping[str, Any], path: str) -> None:
    for name, value in settings.items():
        if value != fixed[name]:
            raise ValueError(f"{_flag(name)} {value}: {path} has {fixed[name]}")


def _with_documents(saved: Run, path: str, source: str | None) -> Run:
    """Return a saved run with its documents, from source or where it had them from."""
    if source is None and not saved.dataset:
        raise ValueError(f"{path} does not tell where its data is: give --data")
    source = saved.dataset if source is None else source
    docs = load_documents(source, saved.config.unit)
    if checksum(docs) != saved.sha256:
        raise ValueError(f"{describe(source)}: the data is not what the run was trained on")
    run = load(path, docs)
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


def _print_start(run: Run, options: Namespace) -> None:
    print(f"core: {BACKEND} ({BACKEND_REASON})")
    print(f"data: {describe(run.dataset)}")
    for name in ("init", "resume"):
        if (path := getattr(options, name)) is not None:
            print(f"{name}: {path} (step {run.adam.step} / {run.config.steps})")
    stream = run.config.unit == "stream"
    if stream:
        print(f"num characters: {len(run.documents[0])}")
    else:
        print(f"num docs: {len(run.documents)}")
    print(f"vocab size: {run.tokenizer.vocab_size}")
    print(f"num params: {run.model.num_params}")
    if run.num_cut:
        block_size = run.model.config.block_size
        print(f"longer than block size {block_size}, and cut: {run.num_cut}")
    if run.validation:
        print(f"validation: {len(run.validation)} {'windows' if stream else 'docs'}")
        uniform, bigram = _baselines(run, [run.encode(doc) for doc in run.validation])
        print(f"baselines: uniform {uniform:.4f} | bigram {bigram:.4f}")
    sys.stdout.flush()


def _baselines(run: Run, docs: Sequence[Sequence[int]]) -> tuple[float, float]:
    training = [run.encode(doc) for doc in run.documents]
    return uniform_loss(run.model), bigram_loss(run.model, training, docs)


def _progress(run: Run, loss: float, val_loss: float | None) -> str:
    """Return the line that says where a run is."""
    line = f"step {run.adam.step:4} / {run.config.steps:4} | loss {loss:.4f}"
    return line if val_loss is None else f"{line} | val loss {val_loss:.4f}"


def _take_steps(run: Run, options: Namespace, out: str | None, log: TextIO | None) -> float | None:
    """Train to the end, with all that is to happen on the way; return the last validation loss.

    A progress line is shown on a terminal. Ctrl-C saves the run; a second one does not wait.
    """
    val_loss = None
    start = done = run.adam.step  # done: the last step whose log line and samples were written
    total = run.config.steps
    bar = tqdm(total=total, initial=start, unit=" steps", disable=None, dynamic_ncols=True)
    try:
        with bar:
            for metrics in steps(run, options.eval_every or 0):
                step, val_loss = int(metrics["step"]), metrics.get("val_loss")
                if log is not None:
                    line = {**metrics, "seconds": round(metrics["seconds"], 6)}
                    log.write(json.dumps(line, allow_nan=False) + "\n")
                if val_loss is not None and step < total:
                    bar.write(_progress(run, metrics["loss"], val_loss))
                if options.sample_every and step % options.sample_every == 0:
                    # the same random numbers at each step, so that only the model differs
                    few = generate(run, 5, options.temperature, Random(run.config.seed))
                    bar.write(f"step {step:4} / {total:4} | {' '.join(few)}")
                done = step
                if options.save_every and step % options.save_every == 0 and step < total:
                    _save(run, options, out, log)
                if not bar.disable:
                    bar.set_postfix_str(f"loss {metrics['loss']:.4f}", refresh=False)
                    bar.update()
        _save(run, options, out, log)
    except KeyboardInterrupt:
        if out is None or done < run.adam.step:
            raise
        _save(run, options, out, log)
        raise KeyboardInterrupt(f"interrupted at step {done}, saved as {printable(out)}") from None
    if run.validation and done == start:  # resumed when all steps were taken
        val_loss = run.val_loss()
    return val_loss


def _save(run: Run, options: Namespace, out: str | None, log: TextIO | None) -> None:
    if log is not None:
        log.flush()  # so that the log is never behind the file
    if out is not None:
        save(run, out)
        if options.snapshots:
            stem, end = os.path.splitext(out)
            save(run, f"{stem}-{run.adam.step:06}{end}")


def _print_samples(run: Run, n: int, temperature: float) -> None:
    known = set(run.documents)
    if n:
        print("--- samples ---")
    for i, document in enumerate(generate(run, n, temperature), start=1):
        mark = "  (in the training data)" if document in known else ""
        print(f"sample {i:2}: {document}{mark}")


def _sample(options: Namespace) -> int:
    n = options.n
    names = ("temperature", "top_k", "top_p", "prompt", "length")
    draw = {name: getattr(options, name) for name in names}
    known: set[str] = set()
    texts: list[str] = []
    tried = 0
    with _user_input():
        run = load(options.model)
        if options.new:
            known.update(_with_documents(run, options.model, options.data).documents)
        rng = run.rng if options.seed is None else Random(options.seed)
        while True:
            few = generate(run, n - len(texts), rng=rng, **draw)
            tried += len(few)
            texts += [text for text in few if text not in known]
            if len(texts) >= n or tried >= 100 * n:  # it may know nothing else
                break
    for text in texts:
        print(json.dumps({"text": text}) if options.json else text)
    if len(texts) < n:
        return _fail(FAILED, f"only {len(texts)} of {tried} samples are new")
    return DONE


def _eval(options: Namespace) -> int:
    with _user_input():
        saved = load(options.model)
        run, why = _training_run(saved, options)
        unit, block_size = saved.config.unit, saved.model.config.block_size
        if options.data is not None:
            docs = load_documents(options.data, unit)
        elif run is not None and run.validation:
            docs = run.validation
        else:
            raise ValueError(f"{options.model} has no validation part: give --data")
        if unit == "stream":
            docs = [window for text in docs for window in windows(text, block_size)]
        ids = [saved.encode(doc) for doc in docs]
    print(f"data: {describe(saved.dataset if options.data is None else options.data)}")
    print(f"num docs: {len(docs)}")
    if run is not None and options.data is not None and unit != "stream":
        known = set(run.documents)
        print(f"in the training data: {sum(doc in known for doc in docs)}")
    if cut := sum(len(doc) - 1 > block_size for doc in ids):
        print(f"longer than block size {block_size}, and cut: {cut}")
    print(f"loss: {mean_loss(saved.model, ids):.4f}")
    print(f"uniform: {uniform_loss(saved.model):.4f}")
    print(f"bigram: {_baselines(run, ids)[1]:.4f}" if run is not None else f"bigram: - ({why})")
    return DONE


def _training_run(saved: Run, options: Namespace) -> tuple[Run | None, str]:
    """Return the saved run with its documents, or why they cannot be had, if --data is given."""
    try:
        return _with_documents(saved, options.model, None), ""
    except (OSError, ValueError) as error:
        if options.data is None:
            raise
        return None, str(error)


def _score(options: Namespace) -> int:
    with _user_input():
        run = load(options.model)
        scores = [score(run.model, run.encode(text), options.top) for text in options.texts]
    alphabet = [*run.tokenizer.chars, None]  # None is BOS, which ends a document
    show = _json if options.json else _table
    for text, positions in zip(options.texts, scores, strict=True):
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
    lines = [f"{text}: loss {total / len(positions):.4f} per position, {total:.4f} in total"]
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


def _info(options: Namespace) -> int:
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


COMMANDS = {"train": _train, "sample": _sample, "eval": _eval, "score": _score, "info": _info}
