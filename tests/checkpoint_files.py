"""Checkpoints for the tests: taken apart, put together, of the older format, and compared."""

import json
import struct


def numbers(run):
    """Return every number of a run that its further steps depend on."""
    blocks = [m.tolist() for m in (*run.model.state_dict.values(), *run.adam.m, *run.adam.v)]
    return blocks, run.adam.step, run.rng.getstate(), run.losses, run.tokens


def parts(content):
    """Return the header and the numbers of a safetensors file."""
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:end]), content[end:]


def joined(header, data):
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + data


def format_2(header, data):
    """Return a file as microgpt wrote it before format 3."""
    metadata = header["__metadata__"]
    config = json.loads(metadata["config"])
    assert config.pop("dtype") == "float64"
    old = {**metadata, "microgpt": "2", "config": json.dumps(config)}
    return joined({**header, "__metadata__": old}, data)


def format_1(header, data):
    """Return a file as microgpt wrote it before format 2, without a record, which is its end."""
    header, data = parts(format_2(header, data))
    header = {name: entry for name, entry in header.items() if not name.startswith("record.")}
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    data = data[: max(ends)]
    metadata = header["__metadata__"]
    settings, state = json.loads(metadata["training"]), json.loads(metadata["state"])
    splits = {"line": "lines", "paragraph": "paragraphs", "stream": "stream"}
    training = {name: settings[name] for name in ("steps", "lr", "batch_size", "val_fraction")}
    training |= {"split": splits[settings["unit"]], **state}
    old = {name: metadata[name] for name in
           ("format", "version", "config", "alphabet", "dataset", "dataset_sha256")}
    old |= {"microgpt": "1", "seed": str(settings["seed"]), "training": json.dumps(training)}
    return joined({**header, "__metadata__": old}, data)
