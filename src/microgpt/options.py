"""The options of the command line, and their help."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NoReturn

from . import __version__
from . import _checks as checks
from .data import UNITS
from .files import one_line
from .model import Config
from .ranges import SHARED, SWEEP_DEFAULTS, LogUniform
from .training import TrainConfig

WRONG_INPUT = 2


def positive(text: str) -> int:
    """Return text as an int of at least 1; an argparse type."""
    try:
        return checks.integer(int(text), "it", 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an int of at least 1, not {text!r}") from None


def name_of(flag: str) -> str:
    """Return the setting that an option sets.

    >>> name_of("--n-embd")
    'n_embd'
    """
    return flag[2:].replace("-", "_")


def flag_of(name: str) -> str:
    """Return the option of a setting.

    >>> flag_of("n_embd")
    '--n-embd'
    """
    return "--" + name.replace("_", "-")


def values_of(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return an argparse type for several values of a kind, "1,2,3", or a range, "1..3"."""

    def parse(text: str) -> list[Any] | LogUniform:
        low, dots, high = text.partition("..")
        try:
            return LogUniform(kind(low), kind(high)) if dots else [*map(kind, text.split(","))]
        except ValueError as error:
            what = str(error) if dots else f"takes values of {kind.__name__}, separated by commas"
            raise argparse.ArgumentTypeError(f"{what}: {text!r}") from None

    return parse


# flag: type (bool: no value), default, metavar, help. What belongs to a run has its default in
# TrainConfig or Config, and is absent from the parsed options unless it was given.
RUN = {
    "--unit": (str, TrainConfig, None, "what counts as one document: a line, a paragraph, or a "
               "stream, from which each step takes windows of --block-size characters"),
    "--val-fraction": (float, TrainConfig, "X", "fraction of the documents held out for "
                       "validation, after duplicates are removed; of a stream, its end"),
    "--val-seed": (int, TrainConfig, "N", "seed that chooses the validation documents, so that "
                   "runs with other seeds are measured on the same ones (default: --seed)"),
    "--n-layer": (int, Config, "N", "layers"),
    "--n-embd": (int, Config, "N", "width, a multiple of --n-head"),
    "--n-head": (int, Config, "N", "attention heads per layer"),
    "--block-size": (int, Config, "N", "longest context, in tokens"),
    "--dtype": (str, Config, None, "the type of the numbers: float32 is faster and takes half the "
                "memory, float64 is exact to the last bits"),
    "--steps": (int, TrainConfig, "N", "training steps"),
    "--lr": (float, TrainConfig, "X", "initial learning rate, decayed linearly to 0"),
    "--batch-size": (int, TrainConfig, "N", "documents per step"),
    "--seed": (int, TrainConfig, "N", "seed of the random number generator"),
}  # fmt: skip
TEMPERATURE = (float, 0.5, "X", "0 is greedy; 1 samples from the model's distribution")
TRAIN = {
    "--data": (str, None, "FILE", "a UTF-8 text file; or makemore: the original's 32,033 names, "
               "downloaded once (default: the bundled names)"),
    "--init": (str, None, "MODEL", "start from the parameters of this model, with its sizes and "
               "its alphabet"),
    "--out": (str, None, "MODEL", "save the run as this safetensors file, at the end and when it "
              "is interrupted"),
    "--save-every": (positive, None, "N", "save every N steps too"),
    "--snapshots": (bool, False, None, "keep a copy of each save, with its step in the name"),
    "--record": (bool, False, None, "keep snapshots of the parameters in the file too, from which "
                 "microgpt explain shows how the model learned"),
    "--resume": (str, None, "MODEL", "continue this run; it is saved there again unless --out is "
                 "given, and what belongs to the run cannot change"),
    "--log": (str, None, "FILE", "write one JSON line per step: step, loss, lr, tokens, seconds, "
              "val_loss"),
    "--eval-every": (positive, None, "N", "measure the validation loss every N steps, not only "
                     "after the last"),
    "--sample-every": (positive, None, "N", "print 5 samples every N steps"),
    "--temperature": TEMPERATURE,
    "--samples": (int, 20, "N", "how many to print at the end"),
}  # fmt: skip
TRAIN_GROUPS = {
    "data": ("--data", "--unit", "--val-fraction", "--val-seed"),
    "model": ("--n-layer", "--n-embd", "--n-head", "--block-size", "--dtype",
              "--init"),
    "training": ("--steps", "--lr", "--batch-size", "--seed"),
    "saving": ("--out", "--save-every", "--snapshots", "--record", "--resume"),
    "watching it learn": ("--log", "--eval-every", "--sample-every"),
    "samples": ("--temperature", "--samples"),
}
SAMPLE = {
    "-n": (int, 20, "N", "how many"),
    "--prompt": (str, "", "TEXT", "what each begins with"),
    "--length": (int, None, "N", "maximum number of characters of each; beyond the block size the "
                 "model sees only the last ones (default: the block size)"),
    "--new": (bool, False, None, "skip samples that occur in the training data"),
    "--data": (str, None, "FILE", "the training data, for --new (default: the file that the "
               "training read)"),
    "--json": (bool, False, None, "print one JSON object per line, with the text"),
    "--temperature": TEMPERATURE,
    "--top-k": (int, None, "N", "from the N most likely tokens only"),
    "--top-p": (float, None, "X", "nucleus sampling: from the smallest set of most likely tokens "
                "whose probabilities sum to at least X; after --top-k"),
    "--seed": (int, None, "N", "seed of the random number generator (default: continue the "
               "run's own generator)"),
}  # fmt: skip
SWEEP = {
    "--data": TRAIN["--data"],
    "--out": (str, "runs", "FOLDER", "the folder of the files, one for each trial"),
    "--trials": (positive, None, "N", "draw N combinations of the settings at random, each for "
                 "every seed; from a range such as --lr 0.001..0.03, log-uniformly"),
    "--draw-seed": (int, 0, "N", "seed of these draws"),
    "--jobs": (positive, None, "N", "trials at a time: processes, or what the cluster is given "
               "(default: the processors of this machine, the threads of the cluster)"),
    "--scheduler": (str, None, "ADDRESS", "do the trials on the Dask cluster of this scheduler, "
                    "such as tcp://host:8786"),
    "--json": (bool, False, None, "print one JSON object, with all digits"),
    "--plot": (str, None, "FILE", "draw the losses against the settings, as PNG, SVG or PDF"),
}  # fmt: skip
SWEEP_GROUPS = {
    "data": ("--data", "--unit", "--val-fraction", "--val-seed"),
    "settings, each with one or several values": tuple(
        flag for flag in RUN if name_of(flag) not in SHARED
    ),
    "random search": ("--trials", "--draw-seed"),
    "workers": ("--jobs", "--scheduler"),
    "results": ("--out", "--json", "--plot"),
}
# The settings of a run, with several values; what all trials share has one.
SWEPT = {
    flag: (values_of(kind), default, metavar and f"{metavar},...", help)
    for flag, (kind, default, metavar, help) in RUN.items() if name_of(flag) not in SHARED
} | {
    flag: (kind, SWEEP_DEFAULTS.get(name_of(flag), default), metavar, help.split(" (default")[0])
    for flag, (kind, default, metavar, help) in RUN.items() if name_of(flag) in SHARED
}  # fmt: skip
EVAL = {
    "--data": (str, None, "FILE", "the documents, of the same unit as in the training (default: "
               "those that the run held out for validation)"),
    "--training-data": (str, None, "FILE", "the training data, for the bigram baseline and to "
                        "count documents that occur in it (default: with --data, none; else the "
                        "file that the training read)"),
    "--json": (bool, False, None, "print one JSON object, with all digits"),
}  # fmt: skip
SCORE = {
    "--top": (int, 3, "N", "how many of the most likely tokens"),
    "--json": (bool, False, None, "print one JSON object per line"),
}
EXPLAIN = {
    "--text": (list, None, "TEXT", "a text to explain, such as a name; give it several times for "
               "more of them (default: two of the data, or samples)"),
    "--out": (str, None, "FILE", "write the page to this HTML file"),
    "--demo": (bool, False, None, "explain a model that is trained now, on the bundled "
               "names, for 1,000 steps"),
    "--json": (bool, False, None, "print the data of the page as one JSON object instead"),
    "--data": (str, None, "FILE", "the training data (default: the file that the training read, if "
               "it is still there)"),
    "--max-snapshots": (int, 16, "N", "how many of a training with --record are shown"),
    "--temperature": TEMPERATURE,
    "--top-k": SAMPLE["--top-k"],
    "--seed": SAMPLE["--seed"],
}  # fmt: skip
INFO = {"--json": (bool, False, None, "print one JSON object")}
PLOT = {
    "--out": (str, None, "FILE", "the picture: a name that ends with .png, .svg or .pdf"),
    "--smooth": (positive, None, "N", "a point of a line is the mean of the last N steps (default: "
                 "100, in short runs less)"),
    "--data": (str, None, "FILE", "the training data, for the line of the bigram table (default: "
               "the file that the training read)"),
}  # fmt: skip
# command: summary, description, example, its own arguments, its options in groups
COMMANDS: dict[str, tuple[str, str, str, tuple[str, ...], dict[str, dict[str, Any]]]] = {
    "train": ("train a model and print samples of it",
              "Train a GPT, one document per step, and print samples of it. --out saves the run; "
              "--resume continues a saved one.",
              "--data names.txt --n-embd 32 --log losses.jsonl", (),
              {title: {flag: (RUN | TRAIN)[flag] for flag in flags}
               for title, flags in TRAIN_GROUPS.items()}),
    "sweep": ("train many models and rank their settings",
              "Train a model for every combination of the settings, which take several values "
              "separated by commas, and print the settings ranked by the validation loss, a mean "
              "over seeds. The same command, given again, goes on where it was stopped.",
              "--lr 0.003,0.01,0.03 --n-embd 16,32 --seed 1,2,3 --out runs", (),
              {title: {flag: (SWEPT | SWEEP)[flag] for flag in flags}
               for title, flags in SWEEP_GROUPS.items()}),
    "sample": ("generate documents with a saved model",
               "Print new documents of a saved model, one per line. Without --seed they are those "
               "that the training printed.",
               "names.safetensors --prompt em -n 5", ("model",), {"options": SAMPLE}),
    "eval": ("measure the loss of a saved model on documents",
             "Print the mean loss of a saved model over all positions of documents, and two "
             "baselines for scale: a uniform guess, and a bigram table of the training data.",
             "names.safetensors --data others.txt", ("model",), {"options": EVAL}),
    "score": ("show how likely a saved model finds texts, token by token",
              "Print the loss of each text, per position and in total, and the tokens that the "
              "model finds most likely there.",
              "names.safetensors emma olivia", ("model", "texts"), {"options": SCORE}),
    "plot": ("draw the losses of saved models",
             "Draw the losses of runs, step by step and smoothed, with the validation losses and "
             "two baselines for scale, into one picture. It needs Matplotlib.",
             "one.safetensors two.safetensors --out losses.png", ("models",), {"options": PLOT}),
    "explain": ("write a page that explains a saved model",
                "Write one HTML file that takes a reader through a saved model, with its own "
                "numbers for the reader's texts: data, tokens, attention, gradients, training, "
                "samples. It opens in a browser and needs no network.",
                "names.safetensors --text emma --text olivia --out names.html", ("model?",),
                {"options": EXPLAIN}),
    "info": ("show what a saved model is, or the version, the core and the platform",
             "Print what a file holds: sizes, settings, progress, data. Without one, print what to "
             "include in a bug report: version, core, platform.",
             "names.safetensors", ("model?",), {"options": INFO}),
}  # fmt: skip
ARGUMENTS: dict[str, dict[str, Any]] = {
    "model": {"metavar": "MODEL", "help": "a file written by microgpt train --out"},
    "model?": {"metavar": "MODEL", "nargs": "?", "help": "a file written by microgpt train --out"},
    "models": {"metavar": "MODEL", "nargs": "+", "help": "a file written by microgpt train --out"},
    "texts": {"metavar": "TEXT", "nargs": "+", "help": "a text to score"},
}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line of bounded length."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_INPUT, f"{self.prog}: {one_line(message, 200)} (see {self.prog} --help)\n")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of one command; argv: the words, None: those of the process."""
    top = parser()
    options, unknown = top.parse_known_args(argv)
    if unknown:
        [commands] = [action.choices for action in top._actions if isinstance(action.choices, dict)]
        command = commands[options.command]
        command.error(f"unrecognized arguments: {' '.join(unknown)}{_hint(unknown[0], command)}")
    return options


# What options of other programs are called here.
ELSEWHERE = {
    "--epochs": "--steps", "--iters": "--steps", "--max-iters": "--steps", "--max-steps": "--steps",
    "--learning-rate": "--lr", "--input": "--data", "--input-file": "--data", "--file": "--data",
    "--output": "--out", "--save": "--out", "--checkpoint": "--resume", "--load": "--resume",
    "--top": "--top-k", "--num-samples": "--samples", "--n": "-n", "--context": "--block-size",
}  # fmt: skip


def _hint(word: str, command: argparse.ArgumentParser) -> str:
    """Return what may have been meant by an argument that the command does not know, or nothing."""
    flags = [flag for action in command._actions for flag in action.option_strings]
    if not word.startswith("-"):
        return "; a file of documents is given as --data FILE" if "--data" in flags else ""
    from difflib import get_close_matches  # for an error alone

    name = word.partition("=")[0].replace("_", "-")
    meant = [flag for flag in (name, ELSEWHERE.get(name)) if flag in flags]
    meant = meant or get_close_matches(name[:30], flags, 1, 0.7)
    return f"; did you mean {meant[0]}?" if meant else ""


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(
        prog="microgpt",
        description="Train a small GPT on a list of names or other short texts, and invent more.",
        epilog="example: microgpt train --data names.txt --steps 2000 --out names.safetensors",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"microgpt {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (summary, description, example, arguments, groups) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=description,
            epilog=f"example: microgpt {name} {example}".rstrip(),
            allow_abbrev=False,
        )
        for argument in arguments:
            command.add_argument(argument.rstrip("?"), **ARGUMENTS[argument])
        for title, options in groups.items():
            group = command.add_argument_group(title) if title != "options" else command
            for flag, option in options.items():
                _add(group, flag, *option)
    return parser


CHOICES = {"--unit": UNITS, "--dtype": ("float64", "float32")}


def _add(
    group: argparse._ActionsContainer, flag: str, kind: Any, default: Any, metavar: Any, help: str
) -> None:
    if kind is bool:
        group.add_argument(flag, action="store_true", help=help)
        return
    if kind is list:
        group.add_argument(flag, action="append", default=[], metavar=metavar, help=help)
        return
    choices = CHOICES.get(flag) if kind is str else None  # a sweep takes several
    if default in (TrainConfig, Config):
        shown = getattr(default, name_of(flag))
        help = help if shown is None else f"{help} (default: {shown})"
        default = argparse.SUPPRESS
    elif default not in (None, ""):
        help = f"{help} (default: {default})"
    group.add_argument(
        flag, type=kind, default=default, metavar=metavar, choices=choices, help=help
    )


def given(options: argparse.Namespace, config: Any) -> dict[str, Any]:
    """Return name -> value of the fields of TrainConfig or Config that were given as options."""
    names = [field.name for field in fields(config)]
    return {name: getattr(options, name) for name in names if name in options}
