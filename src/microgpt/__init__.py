"""microgpt: the 200-line GPT on scalar autograd, with a compiled core.

>>> import microgpt as mg
>>> docs = mg.load_documents()
>>> run = mg.train(docs, steps=3, seed=42)
>>> len(run.losses), len(mg.generate(run, n=2))
(3, 2)
"""

from importlib import import_module

from .gradcheck import gradcheck

__version__ = "0.2.0"

# The module of each public name. They are loaded when first used: Value alone takes a third of the
# time that all take, and the command line can report an unusable MICROGPT_BACKEND in one line.
_MODULES = {
    "core": (
        "BACKEND",
        "BACKEND_REASON",
        "Matrix",
        "Prefixes",
        "Replay",
        "Value",
        "adam_minimize",
        "adam_update",
        "attention",
        "attention_weights",
        "cross_entropy",
        "draw_token",
        "draw_tokens",
        "embedding",
        "grad_enabled",
        "linear",
        "mean",
        "no_grad",
        "pack_documents",
        "pack_encoded",
        "positions",
        "relu",
        "rmsnorm",
        "softmax",
    ),
    "tokenizer": ("Tokenizer",),
    "data": ("DownloadError", "checksum", "describe", "load_documents"),
    "model": ("GPT", "Cache", "Config"),
    "adam": ("Adam", "linear_decay"),
    "sampling": ("generate", "sample"),
    "pictures": ("Picture", "draw", "draw_attention", "to_dot"),
    "plots": ("plot_losses", "plot_sweep"),
    "evaluate": ("Score", "bigram_loss", "mean_loss", "score", "uniform_loss"),
    "checkpoint": ("load", "save"),
    "ranges": ("LogUniform",),
    "ranking": ("Sweep",),
    "sweeps": ("sweep",),
    "trials": ("WorkerError",),
    "explainer": ("Report", "explain", "trace"),
    "training": ("Run", "TrainConfig", "finish", "prepare", "steps", "train", "train_step"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = ["__version__", "gradcheck", *_HOME]

TYPE_CHECKING = False  # typing would take most of the time of the import
if TYPE_CHECKING:
    from .adam import *  # noqa: F403
    from .checkpoint import *  # noqa: F403
    from .core import *  # noqa: F403
    from .data import *  # noqa: F403
    from .evaluate import *  # noqa: F403
    from .explainer import *  # noqa: F403
    from .model import *  # noqa: F403
    from .pictures import *  # noqa: F403
    from .plots import *  # noqa: F403
    from .ranges import *  # noqa: F403
    from .ranking import *  # noqa: F403
    from .sampling import *  # noqa: F403
    from .sweeps import *  # noqa: F403
    from .tokenizer import *  # noqa: F403
    from .training import *  # noqa: F403
    from .trials import *  # noqa: F403


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'microgpt' has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), *__all__})
