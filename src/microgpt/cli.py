"""The commands: results on stdout, progress on stderr.

Exit codes: 0 done, 1 the run failed, 2 wrong usage or input, 130 interrupted.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import shlex
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

from . import __version__
from .checkpoint import contents, load, with_documents
from .core import BACKEND, BACKEND_REASON
from .data import (
    BUNDLED,
    DownloadError,
    cache_folder,
    check_stored,
    checksum,
    describe,
    load_documents,
    windows,
)
from .evaluate import Score, bigram_loss, mean_loss, score, uniform_loss
from .files import one_line, printable, reason
from .model import Config
from .options import EXPLAIN, WRONG_INPUT, flag_of, given, name_of, parse
from .outputs import Outputs, RunKept
from .progress import Progress, someone_looks
from .record import Record
from .sampling import generate
from .training import (
    RECENT,
    Run,
    TrainConfig,
    advice,
    describe_losses,
    finish,
    prepare,
    recent_mean,
    steps,
)

DONE, FAILED, INTERRUPTED = 0, 1, 130


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
    except _WrongInput as error:
        return _fail(WRONG_INPUT, str(error))
    except RunKept as error:  # a path that can be copied, however long
        return _fail(FAILED, str(error), f"; the run was saved as {printable(error.place)}")
    except (FloatingPointError, OSError) as error:
        return _fail(FAILED, reason(error))
    except ImportError as error:  # an extra is not installed
        return _fail(FAILED, str(error))
    except MemoryError as error:
        return _fail(FAILED, str(error) or "not enough memory")
    except Exception as error:
        if not _of_an_interrupt(error):
            raise
        return _fail(INTERRUPTED, "interrupted")


def _of_an_interrupt(error: BaseException | None) -> bool:
    """Return whether error was raised by code, tqdm's for one, that a second Ctrl-C had ended."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


class _WrongInput(Exception):
    """The user's input cannot be used; the message says why."""


@contextmanager
def _user_input(*others: type[Exception]) -> Iterator[None]:
    """Turn errors about the user's input into _WrongInput; others: errors that are about more."""
    passed: tuple[type[Exception], ...] = (DownloadError, *others)
    try:
        yield
    except passed:
        raise
    except (OSError, ValueError) as error:
        raise _WrongInput(reason(error)) from None


def _fail(code: int, message: str, whole: str = "") -> int:
    _say(message, whole)
    return code


def _say(message: str, whole: str = "") -> None:
    """Print message on stderr, shortened if need be, and what is to be told whole."""
    print(f"microgpt: {one_line(message)}{whole}", file=sys.stderr)


def _train(options: Namespace) -> int:
    out = options.out if options.out is not None else options.resume
    with _user_input():
        _check_options(options, out)
        run = _prepared(options) if options.resume is None else _resumed(options)
        generate(run, min(options.samples, 0), options.temperature)  # checks these two early
        if options.eval_every and not run.validation:
            raise ValueError("--eval-every needs --val-fraction")
        data = None if run.dataset in (BUNDLED, "makemore") else run.dataset
        inputs = {"--data": data, "--init": options.init, "--resume": options.resume}
        outputs = Outputs(out, options.log, options.snapshots, inputs, run.adam.step)
    with outputs:
        _print_start(run, options)
        val_loss = _take_steps(run, options, outputs)
    if run.losses:
        print(_progress(run, val_loss))
    _print_samples(run, options.samples, options.temperature)
    sys.stdout.flush()
    _advise(run, val_loss)
    if out is None:
        _say("the model was not saved: --out FILE keeps it")
    return DONE


def _advise(run: Run, val_loss: float | None) -> None:
    """Say what to try if a training diverged, or was not short and has learned little."""
    uniform, best = uniform_loss(run.model), "the learning rate may be too high (--lr)"
    if not run.losses or len(run.losses) < RECENT and run.recent_loss < 2 * uniform:
        return
    if run.recent_loss > uniform:
        _say(f"the loss is above that of a uniform guess, {uniform:.4f}: {best}")
    elif val_loss is not None:
        bigram = _bigram_loss(run, [run.encode(doc) for doc in run.validation])
        if val_loss > bigram:
            _say(f"the validation loss is above that of the bigram table, {bigram:.4f}: more "
                 f"steps may help (--steps), or {best}")


def _check_options(options: Namespace, out: str | None) -> None:
    """Raise ValueError if options exclude or need each other."""
    if options.resume is not None and options.init is not None:
        raise ValueError("--resume continues a run, --init starts one: give one of them")
    for name in ("save_every", "snapshots", "record"):
        if getattr(options, name) and out is None:
            raise ValueError(f"{flag_of(name)} needs --out")
    if options.snapshots and not options.save_every:
        raise ValueError("--snapshots needs --save-every")


def _prepared(options: Namespace) -> Run:
    """Return the new run that the options ask for."""
    settings, sizes = given(options, TrainConfig), given(options, Config)
    init = None
    if options.init is not None:
        init = load(options.init)
        fixed = {name: size for name, size in sizes.items() if name != "dtype"}  # it converts
        _check_unchanged(fixed, vars(init.model.config), options.init)
    if "val_seed" in settings and not settings.get("val_fraction"):
        raise ValueError("--val-seed needs --val-fraction")
    TrainConfig(**settings), Config(1, **sizes)  # refused before anything is loaded
    docs = load_documents(options.data, settings.get("unit", "line"))
    return prepare(docs, init=init, record=options.record, **settings, **sizes)


def _resumed(options: Namespace) -> Run:
    """Return the run that the options ask to continue."""
    saved = load(options.resume)
    hint = "; --init starts another run from its parameters"
    _check_unchanged(given(options, TrainConfig), vars(saved.config), options.resume, hint)
    _check_unchanged(given(options, Config), vars(saved.model.config), options.resume)
    if options.record and saved.record is None:
        saved.record = Record()
    return _with_documents(saved, options.resume, options.data)


def _check_unchanged(
    settings: Mapping[str, Any], fixed: Mapping[str, Any], path: str, hint: str = ""
) -> None:
    for name, value in settings.items():
        if value != fixed[name]:
            flag = flag_of(name)
            raise ValueError(f"{flag} {value} differs from {path}, which has {fixed[name]}{hint}")


def _with_documents(saved: Run, path: str, source: str | None) -> Run:
    """Return a saved run with its documents, from source or from their original path."""
    if source is None and not saved.dataset:
        raise ValueError(f"{path} does not say where its data is: give --data")
    if source is None:
        source = saved.dataset
        check_stored(source)
    docs = load_documents(source, saved.config.unit)
    try:
        return with_documents(saved, docs)
    except ValueError as error:
        raise ValueError(f"{describe(source)}: {error}") from None


def _with_documents_if_there(saved: Run, path: str, source: str | None, without: str) -> Run:
    """Return a saved run with its documents; if those of its file are gone, say what is without."""
    try:
        return _with_documents(saved, path, source)
    except (OSError, ValueError) as error:
        if source is not None:
            raise
        _say(f"{without}: {reason(error)}")
        return saved


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
        bigram = _bigram_loss(run, [run.encode(doc) for doc in run.validation])
        print(f"baselines: uniform {uniform_loss(run.model):.4f} | bigram {bigram:.4f}")
    sys.stdout.flush()
    for line in advice(run):
        _say(line)


def _bigram_loss(run: Run, docs: Sequence[Sequence[int]]) -> float:
    return bigram_loss(run.model, [run.encode(doc) for doc in run.documents], docs)


def _progress(run: Run, val_loss: float | None) -> str:
    """Return the progress line of a run."""
    line = f"step {run.adam.step:4} / {run.config.steps:4} | {describe_losses(run)}"
    return line if val_loss is None else f"{line} | val loss {val_loss:.4f}"


def _take_steps(run: Run, options: Namespace, outputs: Outputs) -> float | None:
    """Train to the end; log, print and save on the way; return the last validation loss.

    Ctrl-C saves the run; a second one does not wait.
    """
    val_loss = None
    start = done = run.adam.step  # done: the last step whose log line and samples were written
    total = run.config.steps
    try:
        with Progress(start, total, someone_looks(), lines=True) as shown:
            for metrics in steps(run, options.eval_every or 0):
                step, val_loss = int(metrics["step"]), metrics.get("val_loss")
                outputs.record(run, metrics)
                if val_loss is not None and step < total:
                    shown.write(_progress(run, val_loss))
                if options.sample_every and step % options.sample_every == 0:
                    # the same random numbers at each step, so that only the model differs
                    few = generate(run, 5, options.temperature, Random(run.config.seed))
                    shown.write(f"step {step:4} / {total:4} | {_harmless(' '.join(few))}")
                done = step
                if options.save_every and step % options.save_every == 0 and step < total:
                    outputs.save(run)
                shown.update(step, lambda: describe_losses(run))
        outputs.save(run)
    except KeyboardInterrupt:
        if done < run.adam.step:
            raise
        if outputs.out is None:
            raise KeyboardInterrupt(
                f"interrupted at step {done}, not saved: --out FILE keeps a run"
            ) from None
        outputs.save(run)
        path = printable(outputs.out)
        raise KeyboardInterrupt(
            f"interrupted at step {done}, saved as {path}: "
            f"microgpt train --resume {shlex.quote(path)} goes on"
        ) from None
    if run.validation and done == start:  # resumed when all steps were taken
        val_loss = run.val_loss()
    return val_loss


def _print_samples(run: Run, n: int, temperature: float) -> None:
    known = set(run.documents)
    if n:
        print("--- samples ---")
    for i, document in enumerate(generate(run, n, temperature), start=1):
        mark = "  (in the training data)" if document in known else ""
        print(f"sample {i:2}: {_harmless(document)}{mark}")


def _harmless(text: str) -> str:
    """Return text, on a terminal without what controls it: the model can be from anybody."""
    if not sys.stdout.isatty():
        return text
    control = [*range(9), *range(11, 32), *range(127, 160)]  # not tabs and line ends
    return text.translate({code: f"\\x{code:02x}" for code in control})


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
            if len(texts) >= n or tried >= 100 * n:  # the model may know nothing else
                break
    for text in texts:
        print(json.dumps({"text": text}) if options.json else _harmless(text))
    if len(texts) < n:
        return _fail(FAILED, f"only {len(texts)} of {tried} samples are new")
    return DONE


def _sweep(options: Namespace) -> int:
    # What only sweeps need would take a quarter of the time in which other commands start.
    from .executors import cluster
    from .grid import plan
    from .plots import check_plot, plot_sweep, save_plot
    from .sweeps import Folder, run_trials
    from .trials import WorkerError

    with ExitStack() as stack:
        with _user_input(WorkerError):
            grid = {**given(options, TrainConfig), **given(options, Config)}
            docs = load_documents(options.data, grid.get("unit", "line"))
            planned = plan(grid, checksum(docs), options.trials, options.draw_seed)
            if options.plot is not None:
                check_plot(options.plot, "--plot")
            folder = stack.enter_context(Folder(options.out))
            executor, jobs = None, options.jobs
            if options.scheduler is not None:
                executor, threads = stack.enter_context(cluster(options.scheduler))
                jobs = jobs or threads
        if not options.json:
            print(f"core: {BACKEND} ({BACKEND_REASON})")
            print(f"data: {describe(options.data)}")
            print(f"trials: {len(planned)}", flush=True)
        with suppress(ValueError):  # which will be a line of the table
            first = next(trial for trial in planned if not trial.refused)
            for line in advice(prepare(docs, **first.settings)):
                _say(line)
        bar = someone_looks()
        found = run_trials(planned, docs, folder, executor, jobs, bar, lines=True)
    print(found.to_json() if options.json else found, flush=True)
    if options.plot is not None:
        save_plot(plot_sweep(found), options.plot)
    if found.best is None:
        return _fail(FAILED, "all trials failed")
    if not options.json:
        print(f"sample from the best: microgpt sample {shlex.quote(found.best.path)}")
    return DONE


def _eval(options: Namespace) -> int:
    with _user_input():
        saved = load(options.model)
        unit, block_size = saved.config.unit, saved.model.config.block_size
        known = options.training_data
        # Only what the user asks for is read: the stored path too, if no other file is named.
        run = None
        if options.data is None or known is not None:
            run = _with_documents(saved, options.model, known)
        if options.data is not None:
            docs: list[str] = load_documents(options.data, unit)
        elif run is not None and run.validation:
            docs = run.validation
        else:
            raise ValueError(f"{options.model} has no validation documents: give --data")
        if unit == "stream":
            docs = [window for text in docs for window in windows(text, block_size)]
        ids = [saved.encode(doc) for doc in docs]
    found: dict[str, Any] = {
        "data": describe(saved.dataset if options.data is None else options.data),
        "num_docs": len(docs),
    }
    if run is not None and options.data is not None and unit != "stream":
        training = set(run.documents)
        found["in_training_data"] = sum(doc in training for doc in docs)
    if cut := sum(len(doc) - 1 > block_size for doc in ids):
        found["cut"] = cut
    found["loss"] = mean_loss(saved.model, ids)
    found["uniform"] = uniform_loss(saved.model)
    found["bigram"] = _bigram_loss(run, ids) if run else None
    if options.json:
        print(json.dumps(found, allow_nan=False))
        return DONE
    words = {
        "num_docs": "num docs",
        "in_training_data": "in the training data",
        "cut": f"longer than block size {block_size}, and cut",
    }
    found["bigram"] = found["bigram"] or "- (needs --training-data)"
    for name, what in found.items():
        text = f"{what:.4f}" if isinstance(what, float) else what
        print(f"{words.get(name, name)}: {text}")
    return DONE


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


def _plot(options: Namespace) -> int:
    from .plots import check_plot, plot_losses, save_plot

    with _user_input():
        out = options.out
        if out is None:
            raise ValueError("plot needs --out FILE")
        check_plot(out, "--out")
        runs = {path: load(path) for path in options.models}
        if os.path.exists(out) and any(os.path.samefile(out, path) for path in runs):
            raise ValueError(f"--out {printable(out)} would overwrite a model")
        for path, run in runs.items():
            without = "no line of the bigram table"
            runs[path] = _with_documents_if_there(run, path, options.data, without)
    names = _names(runs)
    with _user_input():
        figure = plot_losses({names[path]: run for path, run in runs.items()}, options.smooth)
    save_plot(figure, out)
    print(f"{printable(out)}: the losses of {len(runs)} run{'s' * (len(runs) != 1)}")
    return DONE


def _names(runs: Mapping[str, Run]) -> dict[str, str]:
    """Return path -> what a legend calls the run: its file, or how a trial differs from others."""
    from .ranking import in_words, varied

    names = {path: Path(path).stem for path in runs}
    trials = {  # whose names are hashes, which say nothing to a reader
        path: {**vars(runs[path].config), **vars(runs[path].model.config)}
        for path, stem in names.items() if re.fullmatch("trial-[0-9a-f]{16}", stem)
    }  # fmt: skip
    differ = varied([*trials.values()])
    if len({settings["seed"] for settings in trials.values()}) > 1:
        differ.append("seed")
    if differ:
        names |= {path: in_words(settings, differ) for path, settings in trials.items()}
    times = Counter(names.values())
    return {path: name if times[name] == 1 else path for path, name in names.items()}


def _explain(options: Namespace) -> int:
    from .explainer.page import check_output, explain  # no other command should load it
    from .explainer.passes import trace

    draw = {"temperature": options.temperature, "top_k": options.top_k}
    with _user_input():
        if options.demo == (options.model is not None):
            raise ValueError("give a MODEL to explain, or --demo")
        if options.json == (options.out is not None):
            raise ValueError("give --out FILE for a page, or --json for its data")
        if options.demo and options.data is not None:
            raise ValueError("--demo trains on the bundled names, not on --data")
        if options.out is not None:
            check_output(options.out)
        run = _demo() if options.demo else load(options.model)
        if not options.demo:
            without = "the page does without the training data"
            run = _with_documents_if_there(run, options.model, options.data, without)
        generate(run, 0, rng=run.rng, **draw)  # checks these, and the texts, early
        for text in options.text:
            trace(run, text)
    if options.demo:
        finish(run)
    with _user_input():
        report = explain(
            run,
            options.text,
            seed=options.seed,
            max_snapshots=options.max_snapshots,
            path=options.model,
            command=_command_line(options),
            demo=options.demo,
            **draw,
        )
    for line in report.data["meta"]["dropped"]:
        _say(f"left out of the page: {line}")
    if options.json:
        print(json.dumps(report.data, allow_nan=False))
    else:
        report.save(options.out)
        print(f"page: {printable(options.out)} ({os.path.getsize(options.out):,} bytes)")
    return DONE


def _demo() -> Run:
    return prepare(load_documents(), record=True)


def _command_line(options: Namespace) -> str:
    """Return the command of these options, as a shell takes it."""
    words = ["microgpt", options.command, *([] if options.demo else [options.model])]
    for flag, (kind, default, *_) in EXPLAIN.items():
        value = getattr(options, name_of(flag))
        if kind is bool:
            words += [flag] if value else []
        elif kind is list:
            words += [f"{flag}={item}" for item in value]
        elif value != default:
            words += [flag, str(value)]
    return shlex.join(words)


def _info(options: Namespace) -> int:
    found = _installation() if options.model is None else _contents(options.model)
    if options.json:
        print(json.dumps(found, allow_nan=False))
        return DONE
    show = _installation_lines if options.model is None else _contents_lines
    print("\n".join(show(found)))
    return DONE


def _installation() -> dict[str, str]:
    import platform  # which other commands need not wait for

    level = "none (plain Python)"
    if BACKEND == "cython":
        level = import_module(f"{__package__}._core")._level()
    return {
        "microgpt": __version__,
        "installed_in": os.path.dirname(os.path.abspath(__file__)),
        "core": f"{BACKEND} ({BACKEND_REASON})",
        "instruction_set": level,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "cache_folder": cache_folder(),
    }


def _installation_lines(found: Mapping[str, str]) -> Iterator[str]:
    for name, what in found.items():
        yield f"{name.replace('_', ' ')}{':' if name != 'microgpt' else ''} {what}"


def _contents(path: str) -> dict[str, Any]:
    """Return what a file holds; None: not known."""
    with _user_input():
        found = contents(path)
    return {
        "model": path,
        "class": found.model,
        "num_params": sum(math.prod(shape) for shape in found.shapes.values()),
        "sizes": vars(found.config),
        "alphabet": found.tokenizer.chars,
        "training": vars(found.training),
        "step": found.step,
        "loss": recent_mean(found.losses) if found.losses else None,
        "last_loss": found.losses[-1] if found.losses else None,
        "num_losses": len(found.losses),
        "tokens": found.tokens if found.tokens or not found.step else None,
        "seconds": found.seconds if found.seconds or not found.step else None,
        "data": found.dataset or None,
        "data_sha256": found.sha256,
        "parameters": found.shapes,
        "tied": found.tied,
    }


def _contents_lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"model: {printable(found['model'])}"
    yield f"class: {one_line(found['class'], 100)}"
    yield f"num params: {found['num_params']}"
    yield f"sizes: {_settings(found['sizes'])}"
    yield f"alphabet: {one_line(repr(found['alphabet']), 200)}"
    yield f"training: {_settings(found['training'])}"
    yield f"step: {found['step']} / {found['training']['steps']}"
    if found["loss"] is not None:
        n = min(RECENT, found["num_losses"])
        yield f"loss: {found['loss']:.4f} (mean of {n}), last {found['last_loss']:.4f}"
    counted, seconds = "- (not counted)", found["seconds"]
    yield f"tokens: {counted if found['tokens'] is None else found['tokens']}"
    yield f"seconds: {counted if seconds is None else f'{seconds:.1f}'}"
    data = found["data"]
    yield f"data: {'- (not known)' if data is None else one_line(describe(data), 200)}"
    yield f"data sha256: {one_line(found['data_sha256'], 100)}"
    yield "parameters:"
    for name, shape in found["parameters"].items():
        yield f"  {one_line(name, 100)}: {' x '.join(map(str, shape))}"
    for name, other in found["tied"].items():
        yield f"  {one_line(name, 100)}: tied to {one_line(other, 100)}"


def _settings(settings: Mapping[str, Any]) -> str:
    """Return the settings of a run or the sizes of a model on one line."""
    return ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)


COMMANDS = {
    "train": _train,
    "sweep": _sweep,
    "sample": _sample,
    "eval": _eval,
    "score": _score,
    "plot": _plot,
    "explain": _explain,
    "info": _info,
}
