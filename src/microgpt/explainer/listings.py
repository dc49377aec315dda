"""The package's own source, read from the installed files."""

from __future__ import annotations

import inspect
import os
from types import ModuleType
from typing import Any

from .. import _core_py, adam, data, model, sampling, tokenizer, training

LISTINGS: dict[str, tuple[ModuleType, str]] = {
    "documents": (data, "_documents"),
    "split": (data, "train_val_split"),
    "encode": (tokenizer, "Tokenizer.encode"),
    "decode": (tokenizer, "Tokenizer.decode"),
    "batch": (training, "Run._pack"),
    "pack": (_core_py, "pack_encoded"),
    "softmax": (_core_py, "_softmax"),
    "cross_entropy": (_core_py, "cross_entropy"),
    "mean": (_core_py, "mean"),
    "value": (_core_py, "Value.__init__"),
    "add": (_core_py, "Value.__add__"),
    "mul": (_core_py, "Value.__mul__"),
    "pow": (_core_py, "Value.__pow__"),
    "exp": (_core_py, "Value.exp"),
    "log": (_core_py, "Value.log"),
    "relu": (_core_py, "Value.relu"),
    "node": (_core_py, "_node"),
    "backward": (_core_py, "Value.backward"),
    "sort": (_core_py, "_topological_sort"),
    "embedding": (_core_py, "embedding"),
    "rmsnorm": (_core_py, "rmsnorm"),
    "linear": (_core_py, "linear"),
    "dot": (_core_py, "_dot"),
    "attend": (_core_py, "_attend"),
    "attention": (_core_py, "attention"),
    "shapes": (model, "Config.shapes"),
    "parameters": (model, "GPT.init_parameters"),
    "forward": (model, "GPT.forward"),
    "loss": (model, "GPT.packed_loss"),
    "step": (training, "_take_step"),
    "linear_decay": (adam, "linear_decay"),
    "adam": (_core_py, "adam_update"),
    "sample": (sampling, "_Sampler.sample"),
    "draw": (_core_py, "draw_token"),
}


def listings() -> dict[str, Any]:
    """Return for each listing the name in the source, the file, the first line and all lines."""
    return {key: _listing(*place) for key, place in LISTINGS.items()}


def _listing(module: ModuleType, path: str) -> dict[str, Any]:
    found: Any = module
    for name in path.split("."):
        found = inspect.getattr_static(found, name)
    lines, start = inspect.getsourcelines(getattr(found, "__func__", found))
    return {
        "name": path,
        "file": os.path.basename(inspect.getfile(module)),
        "start": start,
        "lines": [line.rstrip("\n") for line in lines],
    }
