"""The model: sizes, parameters, forward, loss, cache."""

import random
from array import array

import pytest

import microgpt as mg
from microgpt import GPT, Cache, Config, no_grad

CONFIG = Config(vocab_size=5, n_layer=2, n_embd=8, n_head=2, block_size=6)


@pytest.fixture
def model():
    return GPT(CONFIG, random.Random(1))


def flat(matrix):
    return [number for row in matrix.tolist() for number in row]


def test_the_default_model_on_27_tokens_has_4192_parameters():
    model = GPT(Config(vocab_size=27), random.Random(42))
    assert model.num_params == 4192
    assert {name: m.shape for name, m in model.state_dict.items()} == {
        "wte": (27, 16),
        "wpe": (16, 16),
        "lm_head": (27, 16),
        "layer0.attn_wq": (16, 16),
        "layer0.attn_wk": (16, 16),
        "layer0.attn_wv": (16, 16),
        "layer0.attn_wo": (16, 16),
        "layer0.mlp_fc1": (64, 16),
        "layer0.mlp_fc2": (16, 64),
    }


def test_parameters_are_drawn_row_by_row_in_the_order_of_the_state_dict(model):
    rng = random.Random(1)
    for matrix in model.state_dict.values():
        assert flat(matrix) == [rng.gauss(0, 0.08) for _ in flat(matrix)]


@pytest.mark.parametrize("name", ["vocab_size", "n_layer", "n_embd", "n_head", "block_size"])
@pytest.mark.parametrize("size", [0, -1])
def test_a_size_below_one_is_an_error_that_names_it(name, size):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not {size}"):
        Config(**{"vocab_size": 5, name: size})


@pytest.mark.parametrize("size", [2.0, "2", None])
def test_a_size_that_is_not_an_int_is_an_error(size):
    with pytest.raises(TypeError, match="n_layer must be an int"):
        Config(5, n_layer=size)


def test_n_embd_must_be_a_multiple_of_n_head():
    with pytest.raises(ValueError, match="multiple of n_head, not 10 with 4 heads"):
        Config(5, n_embd=10, n_head=4)


def test_forward_gives_a_row_of_logits_for_each_token(model):
    assert model.forward([4, 0, 1]).shape == (3, 5)


def test_a_position_does_not_see_what_comes_after_it(model):
    one = model.forward([4, 0, 1]).tolist()
    other = model.forward([4, 0, 3]).tolist()
    assert one[:2] == other[:2]
    assert one[2] != other[2]


def test_the_cache_gives_the_logits_of_the_whole_document(model):
    tokens = [4, 0, 1, 1, 3, 2]
    whole = model.forward(tokens).tolist()
    with no_grad():
        cache = Cache(CONFIG)
        token_by_token = [model.forward([token], cache).tolist()[0] for token in tokens]
        cache = Cache(CONFIG)
        in_pieces = sum([model.forward(tokens[:4], cache).tolist(),
                         model.forward(tokens[4:], cache).tolist()], [])
    for row, one, other in zip(whole, token_by_token, in_pieces, strict=True):
        assert one == pytest.approx(row, rel=1e-12)
        assert other == pytest.approx(row, rel=1e-12)


def test_a_full_cache_is_an_error(model):
    with no_grad():
        cache = Cache(CONFIG)
        model.forward([4, 0, 1, 1, 3, 2], cache)
        with pytest.raises(ValueError, match="the cache is full: 6 tokens and 1 more"):
            model.forward([0], cache)
        assert cache.length == 6


def test_a_cache_outside_no_grad_is_an_error(model):
    with pytest.raises(ValueError, match="no_grad"):
        model.forward([0], Cache(CONFIG))


def test_a_cache_does_not_go_with_packed_documents(model):
    with no_grad(), pytest.raises(ValueError, match="starts"):
        model.forward([0, 1], Cache(CONFIG), starts=[0, 1])


def test_packed_documents_do_not_see_each_other(model):
    packed = model.forward([4, 0, 1, 4, 3], starts=[0, 3]).tolist()
    alone = model.forward([4, 0, 1]).tolist() + model.forward([4, 3]).tolist()
    for row, other in zip(packed, alone, strict=True):
        assert row == pytest.approx(other, rel=1e-12)


def test_a_document_longer_than_block_size_is_an_error_in_forward(model):
    with pytest.raises(ValueError, match="7 tokens is longer than block_size 6"):
        model.forward([0] * 7)
    with pytest.raises(ValueError, match="7 tokens is longer than block_size 6"):
        model.forward([0] * 9, starts=[0, 2])


@pytest.mark.parametrize("token", [-1, 5])
def test_an_unknown_token_is_an_error(model, token):
    with pytest.raises(ValueError, match=f"id {token} is outside 0..4"):
        model.forward([0, token])


def test_the_loss_is_the_mean_over_all_positions_of_all_documents(model):
    one, other = [4, 0, 1, 4], [4, 3, 4]
    expected = (3 * model.loss([one]).data + 2 * model.loss([other]).data) / 5
    assert model.loss([one, other]).data == pytest.approx(expected, rel=1e-12)


def test_the_loss_uses_only_the_first_block_size_positions(model):
    long = [4, 0, 1, 2, 3, 0, 1, 2, 4]
    assert model.loss([long]).data == model.loss([long[:7]]).data
    assert model.loss([long]).data != model.loss([long[:6]]).data


@pytest.mark.parametrize("docs", [[[4]], [[]], [[4, 0, 4], [4]]])
def test_a_document_without_a_pair_of_tokens_has_no_loss(model, docs):
    with pytest.raises(ValueError, match="at least two tokens"):
        model.loss(docs)


def test_no_documents_have_no_loss(model):
    with pytest.raises(ValueError):
        model.loss([])


def test_the_gradient_of_the_loss_is_its_derivative_along_a_random_direction(model):
    doc, rng, eps = [4, 0, 1, 2, 4], random.Random(7), 1e-5
    model.loss([doc]).backward()
    start = {name: m.tolist() for name, m in model.state_dict.items()}
    gradients = {name: m.grad.tolist() for name, m in model.state_dict.items()}
    direction = {
        name: [[rng.gauss(0, 1) for _ in row] for row in rows] for name, rows in start.items()
    }

    def loss_at(distance):
        for name, matrix in model.state_dict.items():
            matrix.load(
                [
                    [x + distance * d for x, d in zip(row, way, strict=True)]
                    for row, way in zip(start[name], direction[name], strict=True)
                ]
            )
        return model.loss([doc]).data

    numeric = (loss_at(eps) - loss_at(-eps)) / (2 * eps)
    analytic = sum(
        g * d
        for name in start
        for g_row, d_row in zip(gradients[name], direction[name], strict=True)
        for g, d in zip(g_row, d_row, strict=True)
    )
    assert analytic == pytest.approx(numeric, rel=1e-6)


def test_the_trace_receives_every_block_by_name(model):
    trace = {}
    logits = model.forward([4, 0, 1], trace=trace)
    names = ["attn_norm", "q", "k", "v", "attn_weights", "heads", "attn_out", "mlp_norm"]
    names += ["mlp_hidden", "mlp_out"]
    layers = [f"layer{i}.{name}" for i in range(2) for name in names]
    assert list(trace) == ["embedding", *layers, "logits"]
    assert trace["logits"].tolist() == logits.tolist()
    assert trace["layer0.attn_weights"].shape == (2 * 3, 3)
    for row in trace["layer1.attn_weights"].tolist():
        assert sum(row) == pytest.approx(1.0)
    assert trace["layer0.mlp_hidden"].shape == (3, 32)


def test_load_state_dict_takes_lists_and_matrices(model):
    other = GPT(CONFIG, random.Random(2))
    model.load_state_dict({name: m.tolist() for name, m in other.state_dict.items()})
    assert model.forward([0, 1]).tolist() == other.forward([0, 1]).tolist()
    third = GPT(CONFIG, random.Random(3))
    third.load_state_dict(model.state_dict)
    assert third.forward([0, 1]).tolist() == other.forward([0, 1]).tolist()


def test_load_state_dict_changes_nothing_on_a_wrong_name_or_shape(model):
    before = {name: m.tolist() for name, m in model.state_dict.items()}
    new = GPT(CONFIG, random.Random(2)).state_dict
    with pytest.raises(ValueError, match="extra"):
        model.load_state_dict({**new, "extra": new["wte"]})
    with pytest.raises(ValueError, match="wpe"):
        model.load_state_dict({name: m for name, m in new.items() if name != "wpe"})
    with pytest.raises(ValueError, match="layer1.mlp_fc2: load needs shape"):
        model.load_state_dict({**new, "layer1.mlp_fc2": new["wte"]})
    assert {name: m.tolist() for name, m in model.state_dict.items()} == before


def test_the_loss_trains_the_parameters_it_depends_on(model):
    model.loss([[4, 0, 4]]).backward()
    used = model.state_dict["wte"].grad.tolist()
    assert any(used[4]) and any(used[0])
    assert not any(used[1]) and not any(used[2])
    assert isinstance(model.loss([[4, 0, 4]]), mg.Value)


@pytest.mark.parametrize("starts", [[1], []])
def test_starts_that_do_not_begin_at_0_are_refused(model, starts):
    with pytest.raises(ValueError, match="starts must rise from 0"):
        model.forward([0, 1, 2], starts=starts)


class Changed(mg.GPT):
    """Has a gain of its own, ties lm_head to wte, and has no second product of its MLP."""

    replayable = True

    @classmethod
    def init_parameters(cls, config, rng):
        state_dict = super().init_parameters(config, rng)
        state_dict["lm_head"] = state_dict["wte"]
        state_dict["gain"] = mg.Matrix.of([[1.0] * config.n_embd])
        del state_dict["layer0.mlp_fc2"]
        return state_dict

    def forward(self, tokens, cache=None, starts=None, trace=None):
        w = self.state_dict
        x = mg.embedding(w["wte"], tokens) + mg.embedding(w["wpe"], mg.positions(tokens, starts))
        x = x + mg.embedding(w["gain"], [0] * len(tokens))
        return mg.linear(mg.relu(x), w["lm_head"])


def test_added_removed_and_tied_parameters_are_trained_counted_saved_and_loaded(tmp_path):
    docs, path = ["emma", "ava", "mia"], tmp_path / "changed"
    run = mg.prepare(docs, steps=6, n_embd=4, n_head=2, model=Changed)
    before = {name: m.tolist() for name, m in run.model.state_dict.items()}
    vocab_size = run.tokenizer.vocab_size
    assert run.model.num_params == 4 * (vocab_size + 16 + 1 + 4 * 4 + 16)
    for _ in range(3):
        mg.train_step(run)
    after = {name: m.tolist() for name, m in run.model.state_dict.items()}
    assert all(before[name] != after[name] for name in ("wte", "wpe", "gain"))
    assert after["lm_head"] == after["wte"]
    mg.save(run, path)
    again = mg.load(path, docs, model=Changed)
    assert mg.finish(again).losses == mg.finish(run).losses
    assert again.model.state_dict["lm_head"] is again.model.state_dict["wte"]
    with pytest.raises(ValueError, match="its model is of class Changed, not GPT"):
        mg.load(path)


def test_tied_parameters_are_not_loaded_from_two_that_differ():
    class Tied(GPT):
        @classmethod
        def init_parameters(cls, config, rng):
            state_dict = super().init_parameters(config, rng)
            return {**state_dict, "lm_head": state_dict["wte"]}

    tied, other = Tied(CONFIG, random.Random(1)), GPT(CONFIG, random.Random(2))
    before = tied.state_dict["wte"].tolist()
    with pytest.raises(ValueError, match="^lm_head and wte are one parameter, but their numbers"):
        tied.load_state_dict(other.state_dict)
    assert tied.state_dict["wte"].tolist() == before
    same = Tied(CONFIG, random.Random(3))
    tied.load_state_dict(same.state_dict)
    assert tied.state_dict["lm_head"].tolist() == same.state_dict["wte"].tolist() != before


@pytest.mark.parametrize(("name", "parameter", "error"), [
    ("losses", mg.Matrix(1, 1), ValueError), ("__metadata__", mg.Matrix(1, 1), ValueError),
    ("adam.m.wte", mg.Matrix(3, 4), ValueError), ("adam.v.gain", mg.Matrix(1, 1), ValueError),
    (1, mg.Matrix(1, 1), TypeError), (None, mg.Matrix(1, 1), TypeError),
    ("gain", [[1.0]], TypeError), ("gain", mg.Value(1), TypeError),
])  # fmt: skip
def test_a_parameter_that_no_file_could_hold_is_refused_at_once(name, parameter, error):
    class Odd(mg.GPT):
        @classmethod
        def init_parameters(cls, config, rng):
            return {**super().init_parameters(config, rng), name: parameter}

    with pytest.raises(error, match="parameter"):
        mg.prepare(["emma"], model=Odd)


@pytest.mark.parametrize(("result", "message"), [
    (None, "must return a dict from name to Matrix, not NoneType"),
    ([mg.Matrix(1, 1)], "must return a dict from name to Matrix, not list"),
    ({"gain": None}, "a parameter is a Matrix with a name, not NoneType 'gain'"),
    ({"gain": mg.Matrix(2, 2)[:1]}, "parameter 'gain' is computed, or a slice .*Matrix.of"),
    ({"gain": mg.Matrix(1, 2) + 1}, "parameter 'gain' is computed, or a slice .*Matrix.of"),
])  # fmt: skip
def test_what_is_no_parameters_is_told_in_one_line(result, message):
    class Odd(mg.GPT):
        @classmethod
        def init_parameters(cls, config, rng):
            return result

    with pytest.raises((TypeError, ValueError), match=f"^Odd.init_parameters:? {message}"):
        mg.prepare(["emma"], model=Odd)


def test_a_parameter_can_be_a_copy_of_what_was_computed():
    class Ones(mg.GPT):
        @classmethod
        def init_parameters(cls, config, rng):
            state_dict = super().init_parameters(config, rng)
            with mg.no_grad():
                state_dict["gain"] = mg.Matrix(1, 2) + 1
            return {**state_dict, "shift": mg.Matrix.of(mg.Matrix(1, 2) + 1)}

    run = mg.prepare(["emma"], model=Ones)
    assert run.model.state_dict["gain"].tolist() == run.model.state_dict["shift"].tolist()


@pytest.mark.parametrize(("model", "kind"), [
    ("MyGPT", "an instance of str"), (None, "None"), (int, "int"), (mg.Cache, "Cache"),
    (GPT(CONFIG, random.Random(1)), "an instance of GPT"),
])  # fmt: skip
def test_a_model_that_is_no_class_of_a_gpt_is_refused(model, kind):
    message = f"^model must be a class, GPT or a subclass of it, not {kind}$"
    with pytest.raises(TypeError, match=message):
        mg.prepare(["emma"], model=model)


def test_a_forward_that_cannot_be_trained_is_refused_with_the_one_that_can(tmp_path):
    class Plain(mg.GPT):
        def forward(self, tokens):
            return super().forward(tokens)

    class Any(mg.GPT):
        def forward(self, *args, **options):
            return super().forward(*args, **options)

    message = r"^Plain.forward must take \(self, tokens, cache=None, starts=None, trace=None\)"
    with pytest.raises(TypeError, match=f"{message}.*'cache'$"):
        mg.prepare(["emma"], model=Plain)
    with pytest.raises(TypeError, match=message):
        mg.load(tmp_path / "no.safetensors", model=Plain)
    assert Plain(CONFIG, random.Random(1)).forward([0]).shape == (1, CONFIG.vocab_size)
    assert len(mg.train(["emma"], model=Any, steps=2).losses) == 2


def test_documents_are_packed_up_to_block_size():
    docs = [[5, 0, 1, 2, 5], [5, 5], (5, 3, 5)]
    assert mg.pack_documents(docs, 3) == ([5, 0, 1, 5, 5, 3], [0, 1, 2, 5, 3, 5], [0, 3, 4])
    assert mg.pack_documents([], 3) == ([], [], [])
    with pytest.raises(ValueError, match="a document needs at least two tokens, not 1"):
        mg.pack_documents([[5, 5], [5]], 3)
    with pytest.raises(TypeError):
        mg.pack_documents([None], 3)


@pytest.mark.parametrize("code", ["B", "H", "I"])
def test_encoded_documents_are_packed_with_bos_before_each(core, code):
    ids = array(code, [0, 1, 3, 2, 3, 1])
    packed = core.pack_encoded(ids, [0, 3, 5], 8, 3)
    assert packed == ([3, 0, 1, 3, 2, 3], [0, 1, 3, 2, 3, 1], [0, 3, 5])
    assert core.pack_encoded(ids, array("Q", [3, 1]), 1, 3) == ([3, 3], [2, 1], [0, 1])
    assert core.pack_encoded(ids, [2], 2**80, 3) == ([3], [3], [0])  # an empty document
    assert core.pack_encoded(ids, [], 2, 3) == ([], [], [])


@pytest.mark.parametrize(
    ("ids", "begins", "block_size", "bos", "error"),
    [
        (array("B", [1, 2]), [2], 4, 0, ValueError),
        (array("B", [1, 2]), [-1], 4, 0, ValueError),
        (array("B", []), [0], 4, 0, ValueError),
        (array("B", [1, 2]), [0, 10**30], 4, 0, ValueError),
        (array("B", [1, 2]), [0], 0, 0, ValueError),
        (array("B", [1, 2]), [0], -(10**30), 0, ValueError),
        (array("B", [1, 2]), [0], 1.5, 0, TypeError),
        (array("B", [1, 2]), ["b"], 4, 0, TypeError),
        (array("B", [1, 2]), [0.0], 4, 0, TypeError),
        (array("B", [1, 2]), 0, 4, 0, TypeError),
        (array("B", [1, 2]), [0], 4, None, TypeError),
        (array("B", [1, 2]), [0], 4, 1.0, TypeError),
        (array("b", [1, 2]), [0], 4, 0, TypeError),
        (array("d", [1, 2]), [0], 4, 0, TypeError),
        (b"ab", [0], 4, 0, TypeError),
        ([1, 2], [0], 4, 0, TypeError),
    ],
)
def test_documents_that_do_not_fit_are_refused_alike(cores, ids, begins, block_size, bos, error):
    messages = []
    for core in cores:
        with pytest.raises(error) as info:
            core.pack_encoded(ids, begins, block_size, bos)
        messages.append(str(info.value))
    assert messages[0] == messages[1]
