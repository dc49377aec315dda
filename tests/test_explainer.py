"""The data of a page: every number is the package's, and what does not fit or exist is said."""

import copy
import json
import math
import os
import subprocess
import sys
from array import array
from base64 import b64decode
from collections import Counter
from importlib import resources
from itertools import accumulate, pairwise
from random import Random

import pytest

import microgpt as mg
from microgpt.cli import run_command
from microgpt.explainer import contents, page
from microgpt.explainer.graphs import score_gradients, size
from microgpt.explainer.listings import LISTINGS, listings
from microgpt.explainer.measures import cosine, principal_components, similarity, vowels
from microgpt.explainer.passes import backward
from microgpt.explainer.tensors import exact, numbers_of, tensor

DOCS = ["anna", "ian", "mia", "nina", "ina", "anna"]
SIZES = {"n_layer": 2, "n_embd": 4, "n_head": 2, "block_size": 6}
N_EMBD, HEAD_DIM, ROOT = 4, 2, math.sqrt(2)
STEPS = 12


def data_of(run, *texts, **settings):
    """Return the data of a page as somebody reads it who has its JSON only."""
    data = json.loads(json.dumps(mg.explain(run, texts, **settings).data, allow_nan=False))
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((resources.files("microgpt.explainer") / "schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(data)
    return data


@pytest.fixture(scope="module")
def run():
    return mg.train(DOCS, steps=STEPS, record=True, **SIZES)


@pytest.fixture(scope="module")
def data(run):
    return data_of(run, "Nina", "anna", seed=3)


@pytest.fixture
def path(run, tmp_path):
    """The path of a saved run whose documents are in a file beside it."""
    names = tmp_path / "names.txt"
    names.write_text("\n".join(DOCS))
    saved = copy.deepcopy(run)
    saved.dataset = str(names)
    mg.save(saved, tmp_path / "names.safetensors")
    return tmp_path / "names.safetensors"


def close(a, b, tolerance=1e-12):
    """Compare numbers, or lists of them; NaN and a missing number fail too."""
    if isinstance(a, (int, float)):
        return abs(a - b) <= tolerance
    return len(a) == len(b) and all(close(x, y, tolerance) for x, y in zip(a, b, strict=True))


def times(w, x):
    """Return w @ x for a matrix as lists and a vector."""
    return [math.fsum(a * b for a, b in zip(row, x, strict=True)) for row in w]


def normalized(x):
    mean_square = math.fsum(a * a for a in x) / len(x)
    return [a / math.sqrt(mean_square + 1e-5) for a in x]


# One text


@pytest.mark.parametrize("text", ["nina", "a", "annaia"])
def test_a_trace_holds_each_step_of_the_model(run, text):
    """Each block is computed again from the one before, in plain Python."""
    traced, w = mg.trace(run, text), {n: m.tolist() for n, m in run.model.state_dict.items()}
    T = len(traced["targets"])
    tokens = traced["ids"][:T]
    assert traced["token"] == [w["wte"][i] for i in tokens]
    assert traced["position"] == w["wpe"][:T]
    pairs = zip(traced["token"], traced["position"], strict=True)
    assert close(traced["embedding"], [[a + b for a, b in zip(*p, strict=True)] for p in pairs])
    assert close(traced["norm"], [normalized(x) for x in traced["embedding"]])
    residual = traced["norm"]
    for i, layer in enumerate(traced["layers"]):
        assert close(layer["attn_norm"], [normalized(x) for x in residual])
        for name in "qkv":
            weights = w[f"layer{i}.attn_w{name}"]
            assert close(layer[name], [times(weights, x) for x in layer["attn_norm"]])
        for h in range(2):
            columns = slice(h * HEAD_DIM, (h + 1) * HEAD_DIM)
            for t in range(T):
                keys = [k[columns] for k in layer["k"][: t + 1]]
                scores = [s / ROOT for s in times(keys, layer["q"][t][columns])]
                assert close(layer["scores"][h][t], scores)
                exps = [math.exp(s) for s in scores]
                weights = [e / math.fsum(exps) for e in exps]
                assert close(layer["weights"][h][t], weights)
                values = [[v[j] for v in layer["v"][: t + 1]] for j in range(N_EMBD)[columns]]
                assert close(layer["heads"][t][columns], times(values, weights))
        assert close(layer["proj"], [times(w[f"layer{i}.attn_wo"], x) for x in layer["heads"]])
        pairs = zip(layer["proj"], residual, strict=True)
        assert close(layer["attn_out"], [[a + b for a, b in zip(*p, strict=True)] for p in pairs])
        assert close(layer["mlp_norm"], [normalized(x) for x in layer["attn_out"]])
        assert close(layer["fc1"], [times(w[f"layer{i}.mlp_fc1"], x) for x in layer["mlp_norm"]])
        assert layer["relu"] == [[max(0.0, a) for a in x] for x in layer["fc1"]]
        assert close(layer["fc2"], [times(w[f"layer{i}.mlp_fc2"], x) for x in layer["relu"]])
        pairs = zip(layer["fc2"], layer["attn_out"], strict=True)
        assert close(layer["mlp_out"], [[a + b for a, b in zip(*p, strict=True)] for p in pairs])
        residual = layer["mlp_out"]
    assert close(traced["logits"], [times(w["lm_head"], x) for x in residual])
    for row, probs in zip(traced["logits"], traced["probs"], strict=True):
        assert close(probs, [math.exp(x) / math.fsum(map(math.exp, row)) for x in row])
    losses = [-math.log(p[t]) for p, t in zip(traced["probs"], traced["targets"], strict=True)]
    assert close(traced["losses"], losses) and close(traced["loss"], math.fsum(losses) / T)
    assert close(traced["loss"], run.model.loss([traced["ids"]]).data)


def test_a_text_is_folded_and_cut_as_a_document_is(run):
    traced = mg.trace(run, "ANNA")
    assert traced["text"] == "anna" and traced["ids"] == run.tokenizer.encode("anna")
    long = mg.trace(run, "anna" * 5)
    assert len(long["ids"]) == 22 and len(long["targets"]) == len(long["logits"]) == 6
    both = mg.prepare(["aA"], **SIZES)
    assert mg.trace(both, "AaA")["text"] == "AaA"  # the alphabet has both
    assert mg.trace(mg.prepare(["σς"], **SIZES), "ΣΣ")["text"] == "σσ"
    assert mg.trace(mg.prepare(["i"], **SIZES), "I")["text"] == "i"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", ValueError, "a text must not be empty"),
        ("an1", ValueError, "character '1' is not in the alphabet 'aimn'"),
        ("İ", ValueError, "character 'İ' is not in the alphabet"),  # two characters in lower case
        (7, TypeError, "a text must be a string, not int"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused(text, error, message, run):
    for use in (mg.trace, mg.explain):
        with pytest.raises(error, match=message):
            use(run, text if use is mg.trace else [text])


def test_only_a_run_of_a_gpt_is_explained(run):
    class Own(mg.GPT):
        pass

    with pytest.raises(TypeError, match="explain knows what GPT computes, not Own"):
        mg.explain(mg.prepare(DOCS, model=Own), "anna")
    with pytest.raises(TypeError, match="explain takes a run, .*not GPT"):
        mg.trace(run.model, "anna")


HUGE = [1e308, -1.7e308, 1e160, 1e39, 5e-324, 0.0, -0.0, 1.0]


@pytest.mark.parametrize("seed", range(20 if mg.BACKEND == "cython" else 5))
def test_a_model_of_huge_numbers_has_a_page_or_is_one_error(seed, path):
    """As a file from somebody else can hold them, or a training that diverges."""
    rng, run = Random(seed), mg.load(path)
    matrices = rng.sample([*run.model.parameters(), *run.adam.m, *run.adam.v], 3)
    for matrix in matrices:
        matrix.load([[abs(rng.choice(HUGE)) for _ in row] for row in matrix])
    run.losses[:] = [rng.choice(HUGE) for _ in run.losses]
    for snapshot in run.record.snapshots:
        snapshot[rng.randrange(len(snapshot))] = rng.choice([3e38, -3e38, 1e-45])
    try:
        data_of(run, "anna")
    except FloatingPointError as error:
        assert "\n" not in str(error)


def test_a_model_that_has_diverged_is_one_error(run):
    run = copy.deepcopy(run)
    run.model.state_dict["lm_head"].load([[1e308] * N_EMBD] * 5)
    with pytest.raises(FloatingPointError, match="the model's logits are not finite"):
        mg.explain(run, "anna")


# The data


def test_the_run_is_not_changed(run):
    before = copy.deepcopy(run)
    mg.explain(run, "nina")
    mg.explain(run, "nina", seed=1)
    for name in ("rng", "losses", "record", "documents"):
        one, other = getattr(run, name), getattr(before, name)
        assert one.getstate() == other.getstate() if name == "rng" else one == other
    for matrix, other in zip(run.adam.params, before.adam.params, strict=True):
        assert matrix.tolist() == other.tolist()
        assert not any(map(any, matrix.grad.tolist()))


def test_the_parameters_are_there_to_the_last_bit(run, data):
    assert [entry["name"] for entry in data["weights"]] == list(run.model.state_dict)
    for entry, matrix in zip(data["weights"], run.model.state_dict.values(), strict=True):
        assert tuple(entry["shape"]) == matrix.shape and entry["dtype"] == "F64"
        numbers = array("d", b64decode(entry["data"]))
        assert numbers.tolist() == [x for row in matrix.tolist() for x in row]
    assert data["config"] == {"vocab_size": 5, **SIZES, "num_params": run.model.num_params}


def test_the_texts_have_what_trace_gives(run, data):
    for entry, given in zip(data["texts"], ("Nina", "anna"), strict=True):
        traced = mg.trace(run, given)
        assert entry["given"] == given and entry["text"] == given.lower()
        assert (entry["trace"] is None) is (given != "Nina")  # the page computes the others
        assert (entry["trace"] or {}).items() <= traced.items()
        for name in ("ids", "targets", "losses", "loss"):
            assert entry[name] == traced[name]
        assert close(entry["perplexity"], math.exp(traced["loss"])) and entry["cut"] is False
    assert data_of(run, "annaann")["texts"][0]["cut"] is True


def test_the_gradients_are_those_of_the_loss(run, data):
    """Central differences of the loss in some parameters."""
    model, ids = copy.deepcopy(run).model, run.tokenizer.encode("nina")
    entries = {entry["name"]: entry for entry in data["grads"]["data"]}
    rng, h = Random(1), 1e-5
    for _ in range(30):
        name = rng.choice(list(entries))
        rows, cols = entries[name]["shape"]
        i, j = rng.randrange(rows), rng.randrange(cols)
        x, losses = model.state_dict[name][i][j].data, []
        for step in (h, -h):
            model.state_dict[name][i][j].data = x + step
            losses.append(model.loss([ids]).data)
        model.state_dict[name][i][j].data = x
        grad = numbers_of(entries[name])[i * cols + j]
        assert abs((losses[0] - losses[1]) / (2 * h) - grad) < 1e-6
    found = sum(x != 0 for entry in entries.values() for x in numbers_of(entry))
    assert data["grads"]["nonzero"] == found > 0


@pytest.fixture(scope="module")
def inner(run):
    """The gradients of the blocks that the model computes for "nina"."""
    return backward(run, run.tokenizer.encode("nina"))[1]


def test_the_gradients_of_the_scores_are_those_that_the_queries_and_keys_have(run, inner):
    layers = mg.trace(run, "nina")["layers"]
    for i, layer in enumerate(layers):
        grads = {name: inner[f"layer{i}.{name}"] for name in ("q", "k", "heads")}
        T = len(layer["q"])
        for j in range(N_EMBD):
            head = j // HEAD_DIM
            rows = [score_gradients(layer, grads["heads"], head, t) for t in range(T)]
            for t, row in enumerate(rows):
                keys = [k[j] / ROOT for k in layer["k"][: t + 1]]
                assert len(row) == t + 1 and close(math.fsum(row), 0.0)  # as of each softmax
                assert close(grads["q"][t][j], times([row], keys)[0])
                queries = [q[j] / ROOT for q in layer["q"][t:]]
                assert close(grads["k"][t][j], times([[r[t] for r in rows[t:]]], queries)[0])


def graph_named(data, name):
    [graph] = [graph for graph in data["graphs"] if graph["id"] == name]
    return graph


@pytest.mark.parametrize("name", ["expression", "score", "loss", "mean"])
def test_a_graph_steps_backward_to_its_gradients(name, data):
    graph = graph_named(data, name)
    nodes = graph["nodes"]
    assert all(child < node["id"] for node in nodes for child in node["children"])
    grads = [0.0] * len(nodes)
    grads[graph["root"]] = 1.0
    assert set(graph["order"]) == {node["id"] for node in nodes if node["children"]}
    for i in graph["order"]:
        for child, local in zip(nodes[i]["children"], nodes[i]["locals"], strict=True):
            grads[child] += local * grads[i]
    assert close(grads, [node["grad"] for node in nodes], 1e-15)
    assert len({(node["x"], node["y"]) for node in nodes}) == len(nodes) < 60
    assert all(nodes[child]["x"] < node["x"] for node in nodes for child in node["children"])


def labelled(graph):
    return {node["label"]: node for node in graph["nodes"]}


def test_the_graph_of_two_letters_is_that_of_every_lesson(data):
    graph = graph_named(data, "expression")
    nodes = labelled(graph)
    assert {label: (node["data"], node["grad"]) for label, node in nodes.items()} == {
        "a": (2.0, 4.0), "b": (3.0, 2.0), "c": (6.0, 1.0), "L": (8.0, 1.0)}  # fmt: skip
    assert [graph["nodes"][i]["label"] for i in graph["order"]] == ["L", "c"]  # so a: 1, then 4


def test_the_slices_of_the_loss_have_its_numbers(data, inner):
    text = data["texts"][0]
    layer = text["trace"]["layers"][0]
    score = graph_named(data, "score")
    t, s, nodes = score["position"], score["key"], labelled(score)
    assert nodes["score"]["data"] == layer["scores"][0][t][s]
    upstream = score_gradients(layer, inner["layer0.heads"], 0, t)[s]
    assert nodes["score"]["grad"] == upstream
    for j in range(HEAD_DIM):
        q, k = nodes[f"q{j}"], nodes[f"k{j}"]
        assert (q["data"], k["data"]) == (layer["q"][t][j], layer["k"][s][j])
        assert (q["total"], k["total"]) == (inner["layer0.q"][t][j], inner["layer0.k"][s][j])
        assert close(q["grad"], upstream * k["data"] / ROOT)
    assert close(nodes["sum"]["data"] / ROOT, nodes["score"]["data"])
    loss = graph_named(data, "loss")
    t, nodes = loss["position"], labelled(loss)
    tokens = [*data["vocab"]["chars"], "BOS"]
    assert text["losses"][t] == max(text["losses"]) and loss["target"] == text["targets"][t]
    for i, token in enumerate(tokens):
        leaf = nodes[f"logit {token}"]
        assert leaf["data"] == text["trace"]["logits"][t][i]
        share = (text["trace"]["probs"][t][i] - (i == loss["target"])) / len(text["targets"])
        assert close(leaf["grad"], share) and close(leaf["grad"], inner["logits"][t][i])
    assert close(nodes[f"loss of {tokens[text['targets'][t]]}"]["data"], text["losses"][t])
    mean = graph_named(data, "mean")
    assert close(mean["nodes"][mean["root"]]["data"], text["loss"])
    leaves = [node["data"] for node in mean["nodes"] if node["label"].startswith("POS")]
    assert leaves == text["losses"]


def test_large_sums_are_folded_and_keep_their_numbers():
    chars = "abcdefghijklmnopqrstuvwxyz"
    run = mg.prepare([chars], n_embd=7, n_head=1, block_size=26)
    data = data_of(run, chars)
    assert all(len(graph["nodes"]) < 60 for graph in data["graphs"])
    trace, loss = data["texts"][0]["trace"], graph_named(data, "loss")
    t, nodes = loss["position"], labelled(loss)
    rest = nodes[f"{27 - 5} more"]
    shown = [node["data"] for node in loss["nodes"] if node["op"] == "exp"]
    largest = max(trace["logits"][t])
    exps = [math.exp(x - largest) for x in trace["logits"][t]]
    assert close(rest["data"] + math.fsum(shown), math.fsum(exps)) and rest["folded"] == 2 * 22
    score = graph_named(data, "score")
    total = labelled(score)["sum"]["data"]
    t, s, layer = score["position"], score["key"], trace["layers"][0]
    assert close(total, times([layer["q"][t]], layer["k"][s])[0])
    assert labelled(graph_named(data, "mean"))["6 more"]["folded"] == 6


@pytest.mark.parametrize("sizes", [{}, {"n_embd": 6, "n_head": 3}, {"n_layer": 1, "n_head": 1}])
def test_the_size_of_the_graph_is_that_of_the_pure_core(sizes):
    if mg.BACKEND != "python":
        pytest.skip("the nodes of the pure core are counted where it is in use")
    run = mg.prepare(DOCS, **SIZES | sizes)
    ids = run.tokenizer.encode("nina")
    root = run.model.loss([ids])
    seen, todo, ops, edges = {id(root)}, [root], Counter(), 0
    while todo:
        node = todo.pop()
        ops[(str(node._op) or "copy") if node._children else "leaf"] += 1
        edges += len(node._children)
        for child in node._children:
            if id(child) not in seen:
                seen.add(id(child))
                todo.append(child)
    found = size(run.model.config, ids[:-1])
    leaves = ops.pop("leaf")
    assert found["by_op"] == dict(ops) and found["leaves"] == leaves
    assert (found["nodes"], found["edges"]) == (len(seen), edges)
    assert data_of(run, "nina")["graph_size"] == found


def adam_by_hand(step, i, j):
    """Return what a parameter becomes, as algorithm 1 of Kingma and Ba says."""
    p, g, m, v = (numbers_of(step[name][i])[j] for name in ("p", "grad", "m", "v"))
    m = step["beta1"] * m + (1 - step["beta1"]) * g
    v = step["beta2"] * v + (1 - step["beta2"]) * g * g
    t = step["step"] + 1
    m_hat, v_hat = m / (1 - step["beta1"] ** t), v / (1 - step["beta2"] ** t)
    return p - step["lr"] * m_hat / (math.sqrt(v_hat) + step["eps"])


@pytest.mark.parametrize("recorded", [True, False])
def test_the_step_of_adam_is_one(recorded, run):
    run = run if recorded else mg.train(DOCS, steps=STEPS, **SIZES)
    step = data_of(run, "nina")["adam"]
    assert step["source"] == ("record" if recorded else "text")
    for i, tensor_after in enumerate(step["p_after"]):
        for j, after in enumerate(numbers_of(tensor_after)):
            assert abs(after - adam_by_hand(step, i, j)) < 1e-15
    if recorded:  # it is the step that was taken, but for the rounding to float32
        assert step["step"] == 10 and close(step["loss"], run.losses[10], 1e-5)
        assert [doc["ids"] for doc in step["documents"]] == run.batch(10)
        assert close(step["lr"], mg.linear_decay(0.01, 10, STEPS))
        assert all(entry["dtype"] == "F32" for name in "pmv" for entry in step[name])
    else:  # it would be the next one, on the reader's text
        assert step["step"] == STEPS and step["documents"][0]["text"] == "nina"
        assert step["p"] == [
            {name: entry[name] for name in ("shape", "dtype", "data")}
            for entry in data_of(run, "nina")["weights"]
        ]
        assert step["losses"] == [mg.trace(run, "nina")["losses"]] and step["lr"] > 0
    assert close(step["loss"], math.fsum(sum(step["losses"], [])) / len(sum(step["losses"], [])))


def test_the_snapshots_are_of_the_training_and_end_with_the_model(run, data):
    assert [snapshot["step"] for snapshot in data["snapshots"]] == [0, 1, 2, 5, 10, STEPS]
    now = [x for matrix in run.model.parameters() for row in matrix.tolist() for x in row]
    for snapshot in data["snapshots"]:
        assert snapshot["weights"]["dtype"] == "F32"
        then = mg.prepare(DOCS, **SIZES)
        numbers = iter(numbers_of(snapshot["weights"]))
        for matrix in then.model.parameters():
            matrix.load([[next(numbers) for _ in row] for row in matrix])
        assert snapshot["samples"] == mg.generate(then, 5, rng=Random(7))
        assert close(snapshot["losses"], [mg.trace(then, t)["loss"] for t in ("nina", "anna")])
    assert close(numbers_of(data["snapshots"][-1]["weights"]), now, 1e-6)
    assert close(data["snapshots"][-1]["losses"], [t["loss"] for t in data["texts"]], 1e-5)


@pytest.mark.parametrize(
    ("most", "steps"), [(16, [0, 1, 2, 5, 10, 12]), (3, [0, 2, 12]), (1, [12]), (0, [])]
)
def test_fewer_snapshots_are_shown_and_it_is_said(most, steps, run):
    data = data_of(run, "nina", max_snapshots=most)
    assert [snapshot["step"] for snapshot in data["snapshots"]] == steps
    dropped = [f"{6 - most} of 6 snapshots"] if most < 6 else []
    assert data["meta"]["dropped"] == dropped


def test_a_snapshot_of_the_last_step_is_there_once():
    run = mg.prepare(DOCS, steps=STEPS, record=True, **SIZES)
    for _ in range(3):
        mg.train_step(run)
    run.record.steps[-1] = 3  # as if it had been taken after the last step
    assert [snapshot["step"] for snapshot in data_of(run, "nina")["snapshots"]] == [0, 1, 3]


def test_a_model_without_a_step_or_a_record_is_explained():
    run = mg.prepare(DOCS, **SIZES)
    data = data_of(run)
    assert data["history"] is None and data["snapshots"] is None
    assert data["adam"]["step"] == 0 and close(data["adam"]["lr"], 0.01)
    assert [text["text"] for text in data["texts"]] == run.documents[:2]
    assert data_of(mg.prepare(DOCS, steps=0, **SIZES))["adam"]["lr"] == 0.01


def test_the_samples_are_those_of_generate(run, data):
    sampling = data["sampling"]
    assert [s["text"] for s in sampling["samples"]] == mg.generate(run, 20, rng=Random(3))
    assert sampling["rng_state"] is None and sampling["seed"] == 3
    assert all(s["known"] is (s["text"] in DOCS) for s in sampling["samples"])
    ours = data_of(run, "nina", temperature=1.5, top_k=2)["sampling"]
    rng = Random()
    rng.setstate((3, tuple(ours["rng_state"]), None))
    assert [s["text"] for s in ours["samples"]] == mg.generate(run, 20, 1.5, rng, top_k=2)


@pytest.mark.parametrize("settings", [{}, {"temperature": 2.0, "top_k": 3}])
def test_a_draw_falls_on_its_token(settings, run):
    """As random.choices does it: u times the sum, in the cumulative sums."""
    for sample in data_of(run, "nina", seed=5, **settings)["sampling"]["samples"]:
        tokens = [run.tokenizer.bos]
        for draw in sample["draws"]:
            with mg.no_grad():
                logits = run.model.forward(tokens)[len(tokens) - 1 : len(tokens)]
                [probs] = mg.softmax(logits, settings.get("temperature", 0.5)).tolist()
            if "top_k" in settings:
                least = sorted(probs)[-settings["top_k"]]
                probs = [p if p >= least else 0.0 for p in probs]
            sums = list(accumulate(probs))
            at = draw["u"] * sums[-1]
            assert ([0.0, *sums])[draw["token"]] <= at < sums[draw["token"]]
            tokens.append(draw["token"])
        ended = tokens[-1] == run.tokenizer.bos
        assert ended or len(tokens) == 7
        assert run.tokenizer.decode(tokens) == sample["text"]


def test_nothing_is_drawn_at_temperature_0(run):
    samples = data_of(run, "nina", temperature=0)["sampling"]["samples"]
    assert len({s["text"] for s in samples}) == 1
    assert {draw["u"] for s in samples for draw in s["draws"]} == {None}


def test_the_checks_are_what_the_model_says(run, data):
    checks = data["checks"]
    assert len(checks) == 8 and max(len(c["positions"]) for c in checks) == 6
    assert {"nina", "anna"} <= {c["text"] for c in checks}
    for check in checks:
        traced = mg.trace(run, check["text"])
        assert traced["ids"] == check["ids"]
        rows = [traced["logits"][t] for t in check["positions"]]
        assert numbers_of(check["logits"]) == sum(rows, [])
    read = {i for check in checks for i in check["ids"][: len(check["positions"])]}
    assert read == set(range(5))  # so that a change of any parameter shows
    assert len(data_of(run, *"nina anna ian mia ina a n i m an".split())["checks"]) == 11


@pytest.mark.parametrize("block_size", [2, 5, 16])
def test_the_checks_read_the_whole_alphabet(block_size):
    chars = "abcdefghijklmnopqrstuvwxyz"
    run = mg.prepare([chars], n_embd=2, n_head=1, block_size=block_size)
    read = set()
    for check in data_of(run, "a")["checks"]:
        read |= set(check["ids"][: len(check["positions"])])
    assert read == set(range(27))


def test_the_dataset_is_counted(run, data):
    found = data["dataset"]
    assert found["present"] and (found["count"], found["distinct"]) == (6, 5)
    assert sorted(found["first"]) == sorted(found["random"]) == sorted(DOCS)
    assert found["lengths"] == [[3, 3], [4, 3]] and found["longest"] == ["anna", "nina"]
    pairs = Counter(p for doc in DOCS for p in pairwise(run.tokenizer.encode(doc)))
    assert {(a, b): n for a, b, n in found["bigrams"]} == pairs
    total = sum(pairs.values())
    assert sum(found["letters"]) == sum(found["bigram_totals"]) == total == 27
    letters = -sum(n * math.log(n / total) for n in found["letters"] if n) / total
    assert close(found["letter_loss"], letters)
    bigrams = -sum(n * math.log(n / found["bigram_totals"][a]) for (a, _), n in pairs.items())
    assert close(found["bigram_loss"], bigrams / total)
    assert close(found["uniform_loss"], math.log(5)) and not found["bigrams_cut"]


def test_a_run_without_its_documents_says_so(path):
    data = data_of(mg.load(path))
    assert not data["dataset"]["present"] and data["dataset"]["sha256"] == mg.checksum(DOCS)
    assert {s["known"] for s in data["sampling"]["samples"]} == {None}
    assert data["heads"]["source"] == "samples"
    assert data["texts"][0]["text"] in {s["text"] for s in data["sampling"]["samples"]}


def test_the_history_has_all_losses_or_says_how_it_was_thinned(run, data, monkeypatch):
    history = data["history"]
    assert numbers_of(history["losses"]) == run.losses and history["steps"] is None
    means = [math.fsum(run.losses[: i + 1]) / (i + 1) for i in range(STEPS)]
    assert close(numbers_of(history["means"]), means)
    monkeypatch.setattr(contents, "MOST_LOSSES", 8)
    thinned = data_of(run, "nina")["history"]
    losses = numbers_of(thinned["losses"])
    assert thinned["thinned"] and len(losses) <= 8 and thinned["count"] == STEPS
    assert losses == [run.losses[step - 1] for step in thinned["steps"]]
    assert (thinned["steps"][0], thinned["steps"][-1]) == (1, STEPS)
    assert (min(losses), max(losses)) == (min(run.losses), max(run.losses))


def test_the_heads_are_measured_over_the_documents(run, data):
    heads = data["heads"]
    assert (heads["texts"], heads["source"], len(heads["rows"])) == (5, "data", 4)
    for row in heads["rows"]:
        weights = [mg.trace(run, doc)["layers"][row["layer"]]["weights"][row["head"]]
                   for doc in dict.fromkeys(run.documents)]  # fmt: skip
        rows = [w for of_doc in weights for w in of_doc[1:]]
        for name, i in (("bos", 0), ("self", -1), ("previous", -2)):
            assert close(row[name], math.fsum(w[i] for w in rows) / len(rows))
        assert 0 < row["entropy"] <= 1


def test_the_map_of_the_letters_has_the_two_principal_components():
    numpy = pytest.importorskip("numpy")
    rng = Random(4)
    rows = [[rng.gauss(0, 1 + 2 * (j < 2)) for j in range(5)] for _ in range(9)]
    points, parts = principal_components(rows)
    left = numpy.array(rows) - numpy.mean(rows, axis=0)
    u, s, _ = numpy.linalg.svd(left, full_matrices=False)
    for k in range(2):
        expected = u[:, k] * s[k]
        expected *= numpy.sign(expected[numpy.argmax(abs(expected))])
        assert close([point[k] for point in points], expected.tolist(), 1e-6)
        assert close(parts[k], float(s[k] ** 2 / sum(s**2)), 1e-9)
    assert principal_components([[1.0, 2.0]] * 3) == ([[0.0, 0.0]] * 3, [0.0, 0.0])


def test_vowels_are_counted_in_three_alphabets():
    assert vowels("abcdeyé") == [0, 4, 6]
    assert vowels("άαβώ") == [0, 1, 3] and vowels("абя") == [0, 2]
    assert cosine([3.0, 0.0], [3.0, 3.0]) == pytest.approx(math.sqrt(0.5))
    assert cosine([0.0], [1.0]) == 0.0
    found = similarity([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], "ae-")
    assert found == {"vowel": 0.0, "consonant": None, "mixed": None}


def test_numbers_become_base64_and_come_back():
    values = [1.5, -0.0, 2.0**-1074, 1e308]
    entry = tensor(values, [2, 2])
    assert b64decode(entry["data"]) == array("d", values).tobytes() or sys.byteorder == "big"
    assert array("d", numbers_of(entry)).tobytes() == array("d", values).tobytes()
    assert exact([0.5, 1.0], [2])["dtype"] == "F32" and exact([0.1], [1])["dtype"] == "F64"
    assert numbers_of(exact([0.1], [1])) == [0.1]


def test_the_source_is_the_installed_one():
    found = listings()
    assert found.keys() == LISTINGS.keys()
    for entry in found.values():
        text = (resources.files("microgpt") / entry["file"]).read_text().split("\n")
        end = entry["start"] - 1 + len(entry["lines"])
        assert text[entry["start"] - 1 : end] == entry["lines"]
        assert entry["lines"][0].lstrip().startswith(("def ", "@", "class "))


# What is large is left out, and it is said


def test_what_does_not_fit_is_left_out_and_it_is_said(run, monkeypatch):
    monkeypatch.setattr(contents, "MOST_WEIGHTS", 100)
    monkeypatch.setattr(contents, "MOST_GRADIENTS", 100)
    monkeypatch.setattr(contents, "MOST_SNAPSHOTS", 3 * run.model.num_params)
    monkeypatch.setattr(contents, "MOST_TRACED", 100)
    monkeypatch.setattr(contents, "HEAD_WEIGHTS", 200)
    monkeypatch.setattr(contents, "MOST_CHECKED", 8 * 5 * 2)
    data = data_of(run, "nina", "anna", "ian")
    assert data["weights"] == [] and data["adam"] is None and data["grads"]["data"] is None
    assert [snapshot["step"] for snapshot in data["snapshots"]] == [0, 2, 12]
    assert data["texts"][0]["trace"] is None
    assert 1 <= data["heads"]["texts"] < 3
    assert {tuple(check["positions"]) for check in data["checks"]} >= {(0, 4), (0, 5)}
    assert data["meta"]["dropped"] == [
        "gradients and the step of Adam: 448 parameters, more than 100",
        "the vectors of the first text, which has 5 positions",
        "the parameters, so that the page cannot compute: 448, more than 100",
        "3 of 6 snapshots",
    ]
    assert len(data["graphs"]) == 4 and data["texts"][2]["losses"]
    monkeypatch.setattr(contents, "MOST_WEIGHTS", 10_000)
    monkeypatch.setattr(contents, "MOST_EXACT", 100)
    monkeypatch.setattr(contents, "MOST_SNAPSHOTS", run.model.num_params)
    data = data_of(run, "nina")
    assert {entry["dtype"] for entry in data["weights"]} == {"F32"}
    assert data["meta"]["tolerance"] == 1e-4
    assert [(s["step"], s["weights"]) for s in data["snapshots"]] == [
        (step, None) for step in (0, 1, 2, 5, 10, 12)]  # fmt: skip
    assert "the parameters of the snapshots" in data["meta"]["dropped"]
    assert "digits of the parameters: 448, more than 100, are float32" in data["meta"]["dropped"]


def test_the_default_data_leave_room_for_a_page_of_the_size_that_is_promised():
    if mg.BACKEND == "python":
        pytest.skip("the data are as large with the compiled core, and come much sooner")
    run = mg.prepare(mg.load_documents(), record=True)
    run.losses[:] = [2.123456789] * 1000
    run.adam.step = 1000
    snapshot = array("f", [0.1] * run.model.num_params)
    run.record.steps = [0, 1, 2, 5, 10, 20, 50, 100, 200, 500]
    run.record.snapshots = [snapshot] * 10
    run.record.m = run.record.v = snapshot
    run.record.documents = [run.tokenizer.encode("emma")]
    data = mg.explain(run, ["emma", "olivia"]).data
    assert len(page.script_json(data)) < 900_000


# Other data


def test_a_text_stream_is_explained():
    text = "To be, or not to be.\nThat is it."
    run = mg.train([text], unit="stream", steps=2, record=True, **SIZES)
    data = data_of(run, "to be")
    assert data["texts"][0]["ids"] == run.tokenizer.encode("to be")[:-1]  # no BOS ends a window
    found = data["dataset"]
    assert found["count"] == len(text) and found["distinct"] is found["lengths"] is None
    assert found["first"][:2] == ["To be,", " or no"]
    assert {s["known"] for s in data["sampling"]["samples"]} == {None}
    assert data["training"]["unit"] == "stream"
    assert data["adam"]["documents"][0]["ids"] == run.batch(1)[0]


def test_greek_names_are_explained():
    cities = ["αθήνα", "λάρισα", "βόλος", "πάτρα", "χανιά", "ρόδος"]
    data = data_of(mg.train(cities, steps=2, **SIZES), "Βόλος")
    assert data["texts"][0]["text"] == "βόλος"
    assert data["vocab"]["chars"] == sorted(set("".join(cities)))
    assert data["embedding"]["statistics"][0]["vowel"] is not None


def test_documents_that_look_like_html_are_harmless_in_a_script():
    docs = ["</script><script>alert(1)</script>", "<!--", "a\u2028b & c", '"\\']
    run = mg.prepare(docs, **SIZES)
    data = mg.explain(run, docs[0]).data
    text = page.script_json(data)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == json.loads(json.dumps(data))
    assert json.loads(text)["texts"][0]["text"] == docs[0]


# The same from both cores, and from the command


def compared(a, b):
    """Return the largest difference between the numbers of two data; the rest is equal."""
    if isinstance(a, dict) and "dtype" in a:
        assert (a["dtype"], a["shape"]) == (b["dtype"], b["shape"])
        return compared(numbers_of(a), numbers_of(b))
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return max((compared(a[key], b[key]) for key in a), default=0.0)
    if isinstance(a, list):
        assert len(a) == len(b)
        return max((compared(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
    if isinstance(a, float) or isinstance(b, float):
        return abs(a - b)
    assert a == b
    return 0.0


def test_both_cores_give_the_same_data(path):
    found = []
    for core in ("python", "cython"):
        command = [sys.executable, "-m", "microgpt", "explain", str(path), "--json", "--text=nina"]
        environment = {**os.environ, "MICROGPT_BACKEND": core, "SOURCE_DATE_EPOCH": "0"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if "the compiled core was not built" in done.stderr:
            pytest.skip("the compiled core was not built")
        assert done.returncode == 0 and done.stderr == ""
        found.append(json.loads(done.stdout))
        assert found[-1]["meta"].pop("backend") == core
    assert compared(*found) <= 1e-12


def test_the_command_prints_what_explain_gives(path, capsys, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    command = ["explain", str(path), "--json", "--text", "Nina", "--seed", "3", "--top-k", "2"]
    assert run_command(command) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    run = mg.load(path, DOCS)
    run.dataset = str(path.with_name("names.txt"))
    line = f"microgpt explain {path} --text=Nina --json --top-k 2 --seed 3"
    expected = mg.explain(run, "Nina", seed=3, top_k=2, path=path, command=line).data
    assert found == json.loads(json.dumps(expected)) and captured.err == ""
    assert found["meta"]["date"] == "1970-01-02T00:00:00Z"
    assert found["meta"]["file"] == "names.safetensors" and len(found["meta"]["sha256"]) == 64
    assert run_command(line.split()[1:]) == 0  # the command that the page names makes it again
    assert json.loads(capsys.readouterr().out) == found


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_data_that_cannot_be_written_are_a_failed_run(path):
    command = [sys.executable, "-m", "microgpt", "explain", str(path), "--json"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "microgpt: No space left on device\n")


def test_the_stored_data_are_used_only_if_they_are_still_the_same(path, capsys):
    names = path.with_name("names.txt")
    for change in (lambda: names.write_text("other\n"), names.unlink, lambda: os.mkfifo(names)):
        change()
        assert run_command(["explain", str(path), "--json"]) == 0
        captured = capsys.readouterr()
        assert "the page does without the training data" in captured.err
        assert captured.err.count("\n") == 1
        assert not json.loads(captured.out)["dataset"]["present"]
    other = path.with_name("copy.txt")
    other.write_text("\n".join(DOCS))
    assert run_command(["explain", str(path), "--json", "--data", str(other)]) == 0
    assert json.loads(capsys.readouterr().out)["dataset"]["name"] == str(other)


def refused(*arguments):
    return pytest.param(arguments[:-1], arguments[-1], id=" ".join(arguments[:-1])[:40])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        refused("--json", "give a MODEL to explain, or --demo"),
        refused("MODEL", "--demo", "--json", "give a MODEL to explain, or --demo"),
        refused("MODEL", "give --out FILE for a page, or --json for its data"),
        refused("MODEL", "--json", "--out", "x.html", "give --out FILE for a page, or --json"),
        refused("--demo", "--json", "--data", "x", "--demo trains on the bundled names"),
        refused("MODEL", "--json", "--text", "", "a text must not be empty"),
        refused("MODEL", "--json", "--text", "nina", "--text", "é", "character 'é' is not in the"),
        refused("--demo", "--json", "--text", "é", "character 'é' is not in the alphabet"),
        refused("--demo", "--json", "--top-k", "0", "top_k must be at least 1, not 0"),
        refused("MODEL", "--json", "--temperature", "-1", "temperature must be at least 0"),
        refused("MODEL", "--json", "--temperature", "nan", "temperature"),
        refused("MODEL", "--json", "--max-snapshots", "-1", "max_snapshots must be at least 0"),
        refused("MODEL", "--json", "--seed", str(10**30), "seed must be at most"),
        refused("nothing.safetensors", "--json", "nothing.safetensors"),
        refused("DATA", "--json", "names.txt: is not a safetensors file"),
        refused("MODEL", "--json", "--data", "MODEL", "not UTF-8"),
        refused("MODEL", "--json", "--data", "nothing.txt", "nothing.txt"),
        refused("MODEL", "--json", "--snapshots", "3", "unrecognized arguments"),
    ],
)
def test_what_cannot_be_explained_is_refused_in_one_line(arguments, message, path, capsys):
    words = {"MODEL": str(path), "DATA": str(path.with_name("names.txt"))}
    assert run_command(["explain", *(words.get(word, word) for word in arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("microgpt") and message in captured.err


# Recorded numbers of 1,000 steps


@pytest.fixture(scope="module")
def demo():
    return trained(mg.load_documents())


@pytest.fixture(scope="module")
def original(reference):
    """The run of EXPLAINED's numbers: the original's names, seed 42, 1,000 steps."""
    return trained(mg.load_documents(reference / "data" / "names.txt"))


def trained(docs):
    if mg.BACKEND == "python":
        pytest.skip("1,000 steps of the pure core take too long for a test")
    run = mg.prepare(docs, record=True)
    texts = ["emma", "olivia", "dorothy"]
    return data_of(run, *texts), data_of(mg.finish(run), *texts)


def summary(before, after):
    """Return what is recorded of the data of a page before and after the training."""
    dataset, emma = after["dataset"], after["texts"][0]
    bigrams = {(a, b): n for a, b, n in dataset["bigrams"]}
    first = sorted(enumerate(emma["trace"]["probs"][0]), key=lambda pair: -pair[1])
    return {
        "count": dataset["count"],
        "distinct": dataset["distinct"],
        "longest": dataset["lengths"][-1],
        "m after e": bigrams[4, 12] / dataset["bigram_totals"][4],
        "baselines": [dataset[f"{name}_loss"] for name in ("uniform", "letter", "bigram")],
        "untrained": [*before["texts"][0]["losses"], before["texts"][0]["loss"]],
        "nonzero": before["grads"]["nonzero"],
        "wte[e][0]": numbers_of(before["grads"]["data"][0])[4 * 16],
        "trained": [*emma["losses"], emma["loss"], emma["perplexity"]],
        "others": [text["loss"] for text in after["texts"][1:]],
        "first letter": "".join(after["vocab"]["chars"][i] for i, _ in first[:5]),
        "history": [numbers_of(after["history"]["losses"])[i] for i in (0, -1)],
        "last means": numbers_of(after["history"]["means"])[-1],
        "vowels": [entry["vowel"] for entry in after["embedding"]["statistics"]],
        "in the data": sum(sample["known"] for sample in after["sampling"]["samples"]),
        "names": " ".join(sample["text"] for sample in after["sampling"]["samples"][:5]),
        "snapshots": [s["samples"][1] for s in after["snapshots"] if s["step"] % 500 in (0, 100)],
    }


# To as many digits as people have measured them with the original program.
ORIGINAL = {
    "count": 32033,
    "distinct": 29494,
    "longest": [15, 2],
    "m after e": 0.0377,
    "baselines": [3.295837, 2.8227, 2.4540],
    "untrained": [3.1097, 4.2117, 3.6083, 3.5067, 3.0409, 3.4955],
    "nonzero": 3616,
    "wte[e][0]": -0.10379658,
    "trained": [2.9712, 2.7668, 4.6166, 1.4786, 1.7981, 2.7263, 15.2758],
    "others": [2.2478, 2.6679],
    "first letter": "akjms",
    "history": [3.3660, 2.6497],
    "last means": 2.2761,
    "vowels": [-0.0127, 0.5272],
    "in the data": 11,
    "names": "kamon ann karai jaire vialan",
    "snapshots": ["pzol", "areen", "amanan", "ananan"],
}
DEMO = {  # by this package at its version 0.2.0
    "count": 5163,
    "distinct": 5163,
    "longest": [11, 6],
    "m after e": 0.0178,
    "baselines": [3.295837, 2.8112, 2.3346],
    "untrained": [3.6329, 3.9580, 3.4757, 2.9340, 3.3271, 3.4655],
    "nonzero": 3584,
    "wte[e][0]": -0.22094208,
    "trained": [3.0680, 3.1752, 4.2607, 1.2850, 1.2920, 2.6162, 13.6831],
    "others": [2.2526, 2.3380],
    "first letter": "lmcas",
    "history": [3.2670, 1.8755],
    "last means": 2.2120,
    "vowels": [-0.0446, 0.4542],
    "in the data": 6,
    "names": "terda marin shanda lialia vara",
    "snapshots": ["pzoj", "cacda", "elel", "lara"],
}


@pytest.mark.parametrize(("name", "recorded"), [("demo", DEMO), ("original", ORIGINAL)])
def test_the_numbers_are_the_recorded_ones(name, recorded, request):
    found = summary(*request.getfixturevalue(name))
    assert found.keys() == recorded.keys()
    for key, value in recorded.items():
        tolerance = 1e-8 if key == "wte[e][0]" else 6e-5
        numbers = isinstance(value, float) or isinstance(value, list) and key != "snapshots"
        same = close(found[key], value, tolerance) if numbers else found[key] == value
        assert same, f"{key}: {found[key]} instead of {value}"


def test_the_graph_of_the_whole_loss_has_the_recorded_size(demo):
    assert demo[0]["graph_size"]["nodes"] == 43_256 and demo[0]["graph_size"]["leaves"] == 4_980


def test_a_float32_model_is_computed_in_float64():
    single = mg.train(DOCS, steps=STEPS, record=True, dtype="float32", **SIZES)
    data = data_of(single, "Nina", seed=3)
    assert data["meta"]["number_type"] == "float32" and "dtype" not in data["config"]
    double = mg.prepare(DOCS, init=single, dtype="float64", **SIZES)
    ids = double.encode("nina")
    with mg.no_grad():
        exact_logits = double.model.forward(ids[:-1]).tolist()
        rounded = single.model.forward(ids[:-1]).tolist()
    logits = data["texts"][0]["trace"]["logits"]
    assert mg.trace(double, "nina")["logits"] == exact_logits
    for ours, row, other in zip(logits, exact_logits, rounded, strict=True):
        assert ours == row and ours != other
        assert ours == pytest.approx(other, abs=1e-4)
