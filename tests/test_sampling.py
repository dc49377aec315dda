"""Sampling: the draw, where it stops, what temperature does."""

import copy
import gc
import math
import random
import weakref
from collections import Counter
from types import SimpleNamespace

import pytest

import microgpt as mg
from microgpt import draw_token
from microgpt.sampling import _Sampler


@pytest.fixture(scope="module")
def run():
    return mg.train(["emma", "olivia", "ava", "mia"], steps=30, n_embd=8, n_head=2, block_size=8)


def test_generate_gives_n_documents_over_the_alphabet(run):
    names = mg.generate(run, n=7)
    assert len(names) == 7
    assert set("".join(names)) <= set("aeilmov")


def test_the_same_generator_gives_the_same_documents(run):
    one = mg.generate(run, n=5, rng=random.Random(3))
    assert one == mg.generate(run, n=5, rng=random.Random(3))
    assert one != mg.generate(run, n=5, rng=random.Random(4))


def test_without_a_generator_the_run_continues_its_own():
    docs = ["emma", "ava"]
    one, other = mg.train(docs, steps=3), mg.train(docs, steps=3)
    together = mg.generate(one, n=4, temperature=1.0)
    assert mg.generate(other, 2, 1.0) + mg.generate(other, 2, 1.0) == together


def test_a_document_ends_at_block_size(run):
    rng = random.Random(0)
    lengths = [len(mg.sample(run.model, run.tokenizer.bos, rng, 50.0)) for _ in range(50)]
    assert max(lengths) == 8


def test_temperature_zero_takes_the_likeliest_token_and_draws_nothing(run):
    rng = random.Random(0)
    state = rng.getstate()
    [once, again] = mg.generate(run, n=2, temperature=0, rng=rng)
    assert once == again
    assert rng.getstate() == state
    assert draw_token([0.5, 2.0, -1.0, 2.0], None) == 1


@pytest.mark.parametrize("temperature", [1e-4, 1e-9, 1e-289, 1e-300, 5e-324])
def test_a_tiny_temperature_takes_the_likeliest_token_too(run, temperature):
    [greedy] = mg.generate(run, n=1, temperature=0)
    assert set(mg.generate(run, n=20, temperature=temperature)) == {greedy}


def test_an_infinite_temperature_draws_every_token_alike(run):
    model = _Sampler(run.model, math.inf, replay=False)
    assert model._probabilities([run.tokenizer.bos]).tolist()[0] == pytest.approx([1 / 8] * 8)


def probabilities(logits, temperature):
    exps = [math.exp(logit / temperature) for logit in logits]
    return [e / sum(exps) for e in exps]


@pytest.mark.parametrize("temperature", [0.3, 0.5, 1.0, 2.0])
def test_the_probabilities_are_the_softmax_of_the_logits_over_the_temperature(run, temperature):
    bos = run.tokenizer.bos
    model, tokens = _Sampler(run.model, temperature, replay=True), [bos, 0, 3, 1]
    for attempt in range(3):  # the first computes and records, the others replay
        for i, token in enumerate(tokens):
            model._cache.length = i
            logits = run.model.forward(tokens[: i + 1]).tolist()[i]
            expected = probabilities(logits, temperature)
            [row] = model._replay([token], key=i).tolist()
            assert row == pytest.approx(expected, rel=1e-12), attempt


def test_replayed_and_computed_documents_are_the_same(run, monkeypatch):
    replayed = mg.generate(run, n=25, temperature=1.0, rng=random.Random(1))
    monkeypatch.setattr(mg.GPT, "replayable", False)
    assert mg.generate(run, n=25, temperature=1.0, rng=random.Random(1)) == replayed


def test_a_model_with_its_own_forward_is_run_for_every_token(run):
    class Constant(mg.GPT):
        def forward(self, tokens, cache=None, starts=None, trace=None):
            logits = super().forward(tokens, cache, starts, trace)
            calls.append(list(tokens))
            return mg.Matrix(*logits.shape)

    calls = []
    model = Constant(run.model.config, random.Random(0))
    documents = [mg.sample(model, 7, random.Random(seed)) for seed in range(3)]
    assert len(calls) == sum(min(len(doc) + 1, 8) for doc in documents)


def test_tokens_are_drawn_as_often_as_their_probabilities_say():
    probs, n = probabilities([1.0, 2.0, 0.0], 0.7), 20_000
    rng = random.Random(5)
    counts = Counter(draw_token(probs, rng) for _ in range(n))
    for token, p in enumerate(probs):
        deviation = math.sqrt(n * p * (1 - p))
        assert abs(counts[token] - n * p) < 4 * deviation


def test_the_draw_is_that_of_choices():
    probs = [0.1, 0.2, 0.3, 0.4]
    ours, theirs = random.Random(9), random.Random(9)
    for _ in range(200):
        assert draw_token(probs, ours) == theirs.choices(range(4), probs)[0]


@pytest.mark.parametrize("temperature", [-0.1, math.nan])
def test_a_temperature_below_zero_is_an_error(run, temperature):
    with pytest.raises(ValueError, match="temperature must be at least 0"):
        mg.generate(run, n=1, temperature=temperature)


def test_a_negative_n_is_an_error(run):
    with pytest.raises(ValueError, match="n must be at least 0, not -1"):
        mg.generate(run, n=-1)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_parameters_that_are_not_finite_are_an_error(temperature):
    run = mg.prepare(["ab"])
    run.model.state_dict["wte"][run.tokenizer.bos][0].data = math.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        mg.generate(run, n=1, temperature=temperature)


def test_sampling_leaves_no_graph_and_no_gradients(run):
    before = run.model.state_dict["wte"].grad.tolist()
    mg.generate(run, n=2)
    assert run.model.state_dict["wte"].grad.tolist() == before
    assert mg.grad_enabled()


def draws(probs, n=400, **options):
    rng = random.Random(2)
    return Counter(draw_token(probs, rng, **options) for _ in range(n))


ALL = {0, 1, 2, 3}
PROBS = [0.1, 0.5, 0.25, 0.15]


@pytest.mark.parametrize(("top_k", "tokens"), [(1, {1}), (2, {1, 2}), (3, {1, 2, 3}), (9, ALL)])
def test_top_k_keeps_the_likeliest_tokens(top_k, tokens):
    assert set(draws(PROBS, top_k=top_k)) == tokens


@pytest.mark.parametrize(
    ("top_p", "tokens"),
    [(1e-9, {1}), (0.49, {1}), (0.51, {1, 2}), (0.74, {1, 2}), (0.76, {1, 2, 3}), (1.0, ALL)],
)
def test_top_p_keeps_the_likeliest_tokens_up_to_a_probability(top_p, tokens):
    assert set(draws(PROBS, top_p=top_p)) == tokens


def test_top_p_counts_what_top_k_has_left():
    assert set(draws(PROBS, top_k=2, top_p=0.66)) == {1}
    assert set(draws(PROBS, top_k=2, top_p=0.67)) == {1, 2}


def test_of_equal_tokens_the_lower_ids_are_kept():
    assert set(draws([0.2] * 5, top_k=2)) == {0, 1}


def test_what_is_kept_is_drawn_in_the_old_proportions():
    counts = draws(PROBS, n=9000, top_k=2)
    assert counts[1] / counts[2] == pytest.approx(2, rel=0.1)


def test_limits_that_keep_everything_change_nodraw_token(run):
    plain = mg.generate(run, 5, rng=random.Random(1))
    assert mg.generate(run, 5, rng=random.Random(1), top_k=99, top_p=1.0) == plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k must be at least 1, not 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, not 0.0"),
        ({"top_p": 1.5}, "top_p must be above 0"),
        ({"top_p": math.nan}, "top_p must be above 0"),
        ({"prompt": "zoe"}, "character 'z' is not in the alphabet"),
        ({"prompt": "mmmmmmmm"}, "a prompt of 8 characters leaves no room in 8"),
        ({"length": 0}, "a prompt of 0 characters leaves no room in 0"),
    ],
)
def test_options_out_of_range_are_errors(run, options, message):
    with pytest.raises(ValueError, match=message):
        mg.generate(run, 1, **options)


def test_samples_begin_with_the_prompt(run):
    names = mg.generate(run, 9, prompt="em", rng=random.Random(1))
    assert all(name.startswith("em") and len(name) <= 8 for name in names)


def test_a_prompt_is_what_the_model_might_have_drawn_itself(run):
    [name] = mg.generate(run, 1, temperature=0)
    assert len(name) > 2
    assert mg.generate(run, 1, temperature=0, prompt=name[:2]) == [name]


def test_a_document_may_be_longer_than_block_size(run):
    rng = random.Random(0)
    lengths = [len(name) for name in mg.generate(run, 60, 50.0, rng, length=30)]
    assert 8 < max(lengths) <= 30
    long = "".join(mg.generate(run, 1, 50.0, rng, prompt="olivia" * 4, length=25))
    assert long.startswith("olivia" * 4)


@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_the_smallest_windows_can_be_sampled_beyond(block_size):
    run = mg.prepare(["abab"], block_size=block_size)
    assert len(mg.generate(run, 40, 1.0, length=9)) == 40


# Drawing in both cores


def rows(rng):
    for n in (1, 2, 5, 27, 100):
        yield [rng.random() for _ in range(n)]
        yield [rng.choice([0.0, 0.25, 0.5]) for _ in range(n - 1)] + [0.125]
        yield [10.0 ** rng.uniform(-300, 0) for _ in range(n)]


LIMITS = [(None, None), (1, None), (3, None), (10**30, None), (None, 0.3), (None, 1.0), (4, 0.7)]


@pytest.mark.parametrize("top_k, top_p", LIMITS)
def test_both_cores_draw_the_same_tokens(cores, top_k, top_p):
    rng, generators = random.Random(top_k or 0), (random.Random(1), random.Random(1))
    for row in rows(rng):
        for _ in range(30):
            drawn = [
                core.draw_token(row, generator, top_k, top_p)
                for core, generator in zip(cores, generators, strict=True)
            ]
            assert drawn[0] == drawn[1] and row[drawn[0]] > 0
        assert {core.draw_token(row, None) for core in cores} == {row.index(max(row))}
    assert generators[0].getstate() == generators[1].getstate()


@pytest.mark.parametrize("row, options, error, words", [
    ([], {}, ValueError, "at least one probability"),
    ([0.5, -0.25], {}, ValueError, "at least 0, not -0.25"),
    ([0.0, 0.0], {}, FloatingPointError, "not finite"),
    ([math.nan, 0.5], {}, FloatingPointError, "not finite"),
    ([math.inf, 0.5], {"rng": None}, FloatingPointError, "not finite"),
    ([0.5], {"top_k": 0}, ValueError, "top_k must be at least 1, not 0"),
    ([0.5], {"top_k": -3}, ValueError, "top_k must be at least 1, not -3"),
    ([0.5], {"top_k": True}, TypeError, "top_k must be an int"),
    ([0.5], {"top_p": 0.0}, ValueError, "top_p must be above 0"),
    ([0.5], {"top_p": math.nan}, ValueError, "top_p must be above 0"),
    ([0.5, "a"], {}, TypeError, "str"),
])  # fmt: skip
def test_what_cannot_be_drawn_from_is_refused(core, row, options, error, words):
    with pytest.raises(error, match=words):
        core.draw_token(row, **{"rng": random.Random(0), **options})


def chain(core):
    """A replay whose token i is followed by i + 1, of five, and what it gives for each token."""
    table = core.Matrix.of([[float(j == (i + 1) % 5) for j in range(5)] for i in range(5)])
    after = [core.embedding(table, [i]) for i in range(5)]
    return core.Replay(lambda ids: core.embedding(table, ids)), after


def test_tokens_are_drawn_until_the_end_or_the_one_to_stop_at(core):
    (replay, after), cache = chain(core), SimpleNamespace(length=2)
    for _ in range(3):
        cache.length = 2
        assert core.draw_tokens(replay, cache, after[0], 100, 4, random.Random(0)) == [1, 2, 3, 4]
        assert cache.length == 5
        assert core.draw_tokens(replay, cache, after[4], 7, 4, random.Random(0)) == [0, 1, 2]
        assert cache.length == 7
        assert core.draw_tokens(replay, cache, after[4], 7, 4, None) == [0]
        assert cache.length == 7


def test_a_position_below_0_is_no_other_position(core):
    one, two = (
        core.Matrix.of([[float(j == (i + step) % 5) for j in range(5)] for i in range(5)])
        for step in (1, 2)
    )
    cache, start = SimpleNamespace(length=0), core.embedding(one, [0])
    replay = core.Replay(lambda ids: core.embedding(two if cache.length < 0 else one, ids))

    def draw(length):
        cache.length = length
        return core.draw_tokens(replay, cache, start, length + 3, 5, None)

    for _ in range(3):
        assert draw(-2) == [1, 3, 0, 1]
        assert draw(0) == [1, 2, 3, 4]


def test_python_in_the_middle_of_a_draw_changes_no_token_but_what_it_does(core):
    """A generator may call the replay itself, or raise."""
    (replay, after), cache = chain(core), SimpleNamespace(length=0)

    class Meddling(random.Random):
        def random(self):
            for tokens in ([0], [1, 2, 3]):
                replay(tokens, key=cache.length)
            if cache.length == 3:
                raise LookupError("enough")
            return super().random()

    with pytest.raises(LookupError):
        core.draw_tokens(replay, cache, after[0], 100, 4, Meddling(0))
    assert cache.length == 3
    cache.length = 0
    assert core.draw_tokens(replay, cache, after[0], 2, 4, Meddling(0)) == [1, 2, 3]
    with pytest.raises((TypeError, AttributeError)):
        nothing = core.Replay(lambda ids: None)
        core.draw_tokens(nothing, cache, after[0], 100, 4, random.Random(0))


class Counting(random.Random):
    calls = 0

    def random(self):
        self.calls += 1
        return super().random()


class Rerun(mg.GPT):
    """Not replayable: every token is computed by the model's Python."""


@pytest.mark.parametrize("options", [
    {}, {"prompt": "a"}, {"prompt": "mia"}, {"length": 30}, {"prompt": "a", "length": 30},
    {"temperature": 1.5, "top_k": 3}, {"prompt": "olivia", "length": 21, "top_p": 0.8},
])  # fmt: skip
def test_what_documents_begin_with_is_computed_once_and_changes_no_sample(run, options):
    """The same documents as one by one, and as without a replay; one number is drawn per token."""
    rng, other = Counting(5), Counting(5)
    docs = mg.generate(run, n=12, rng=rng, **options)
    assert docs == [mg.generate(run, n=1, rng=other, **options)[0] for _ in range(12)]
    assert rng.calls == other.calls
    length = options.get("length", run.model.config.block_size)
    drawn = sum(len(doc) - len(options.get("prompt", "")) + (len(doc) < length) for doc in docs)
    assert rng.calls == drawn
    model = Rerun(run.model.config, random.Random(0))
    for mine, its in zip(model.state_dict.values(), run.model.parameters(), strict=True):
        mine.load(its)
    limits = {key: value for key, value in options.items() if key != "prompt"}
    prompt = run.tokenizer.encode(options.get("prompt", ""))[1:-1]
    rng = random.Random(5)
    assert docs == [
        run.tokenizer.decode(mg.sample(model, run.tokenizer.bos, rng, prompt=prompt, **limits))
        for _ in range(12)
    ]


def test_the_numbers_of_a_model_may_change_between_two_calls():
    docs = ["emma", "olivia", "ava"]
    run = mg.train(docs, steps=5)
    mg.generate(run, n=3, rng=random.Random(1))
    for param in run.model.state_dict.values():
        param.load(param * 3.0)
    changed = mg.generate(run, n=3, temperature=1.0, rng=random.Random(1))
    fresh = mg.train(docs, steps=5)
    before = mg.generate(fresh, n=3, temperature=1.0, rng=random.Random(1))
    for param in fresh.model.state_dict.values():
        param.load(param * 3.0)
    assert mg.generate(fresh, n=3, temperature=1.0, rng=random.Random(1)) == changed != before


def test_a_model_with_too_many_logits_is_told_from_one_that_ends_the_document():
    class Wide(mg.GPT):
        def forward(self, *args, **kwargs):
            x = super().forward(*args, **kwargs)
            return mg.Matrix.of([[*row, 1000.0] for row in x.tolist()])

    run = mg.prepare(["ab"], steps=1, n_embd=4, n_head=1, model=Wide)
    with pytest.raises(ValueError, match=r"id 3 is not in 0\.\.2"):
        mg.generate(run, n=2, length=1)


# Prefixes that documents of one call have in common


def apart(run, n, seed, **options):
    """The same documents as of one call, each from a call of its own: they share nothing."""
    rng = random.Random(seed)
    return [mg.generate(run, n=1, rng=rng, **options)[0] for _ in range(n)]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("options", [
    {}, {"temperature": 0}, {"temperature": 1.0}, {"temperature": 3.0, "length": 21},
    {"top_k": 2}, {"top_p": 0.6, "temperature": 1.0}, {"prompt": "ma"},
    {"prompt": "olivia", "length": 23}, {"prompt": "oliviaava", "length": 30, "top_k": 3},
])  # fmt: skip
def test_documents_of_one_call_are_those_of_calls_of_their_own(options, dtype):
    docs = ["emma", "olivia", "ava", "mia"]
    run = mg.train(docs, steps=20, n_embd=8, n_layer=2, n_head=2, block_size=8, dtype=dtype)
    for seed in range(8 if mg.BACKEND == "cython" else 2):
        one = mg.generate(run, n=8, rng=random.Random(seed), **options)
        assert one == apart(run, 8, seed, **options)


@pytest.fixture
def computed(monkeypatch):
    """A list of the tokens of every forward pass from now on; each runs the Python of GPT."""
    calls, forward = [], mg.GPT.forward

    def counted(self, tokens, cache=None, starts=None, trace=None):
        calls.append(tuple(tokens))  # reading them, so that it cannot be replayed
        return forward(self, tokens, cache, starts, trace)

    monkeypatch.setattr(mg.GPT, "forward", counted)
    return calls


@pytest.mark.parametrize("prompt", ["", "m"])
def test_what_follows_a_prefix_is_computed_once_in_a_call(run, computed, prompt):
    docs = mg.generate(run, n=30, rng=random.Random(1), prompt=prompt)
    # What follows a document of 8 characters is not asked; what follows BOS and the prompt always.
    prefixes = {doc[:i] for doc in docs for i in range(len(prompt), len(doc) + 1) if i < 8}
    assert len(computed) == len(prefixes) < sum(map(len, docs))
    computed.clear()
    assert mg.generate(run, n=30, rng=random.Random(1), prompt=prompt) == docs
    assert len(computed) == len(prefixes)  # again: nothing is kept from one call to the next


class Recurrent(mg.GPT):
    """What it says follows from a state that it keeps in the cache, beside keys and values."""

    replayable = True

    def forward(self, tokens, cache=None, starts=None, trace=None):
        state, w = vars(cache).setdefault("state", mg.Matrix(1, 8)), self.state_dict
        if cache.length == 0:
            state.load(mg.Matrix(1, 8))
        for i in range(len(tokens)):
            state.load(mg.embedding(w["wte"], tokens[i : i + 1]) * 9.0 - state * 0.9)
        cache.length += len(tokens)
        return mg.linear(state, w["lm_head"])


class OwnPositions(mg.GPT):
    replayable = True

    def position_embedding(self, tokens, cache, starts):
        return super().position_embedding(tokens, cache, starts) * 2.0


class Tied(mg.GPT):
    replayable = True

    @classmethod
    def init_parameters(cls, config, rng):
        parameters = super().init_parameters(config, rng)
        return parameters | {"lm_head": parameters["wte"]}


@pytest.mark.parametrize("model", [Recurrent, OwnPositions, Tied, Rerun])
def test_a_model_of_ones_own_gives_the_same_documents_too(model):
    run = mg.prepare(["emma", "olivia", "ava"], model=model, n_embd=8, n_head=2, block_size=8)
    for seed in range(5):
        docs = mg.generate(run, n=12, temperature=1.0, rng=random.Random(seed))
        assert docs == apart(run, 12, seed, temperature=1.0)
        assert len(set(docs)) > 3


class Summing:
    """A model over five tokens that keeps its rows in two Matrices, and counts what it computes."""

    def __init__(self, core, dtype="float64"):
        rng = random.Random(3)
        self.core, self.length, self.computed = core, 0, []
        self.table, head = (
            core.Matrix.of([[rng.gauss(0, 1) for _ in range(3)] for _ in range(5)], dtype)
            for _ in range(2)
        )
        self.head = head
        self.matrices = [core.Matrix(7, 3, dtype), core.Matrix(7, 3, dtype)]
        self.replay = core.Replay(self.forward)
        self.start = core.Matrix.of([[0.2] * 5])

    def forward(self, ids):
        self.computed.append(tuple(ids))
        end = self.length + 1
        x = self.core.embedding(self.table, ids)
        for matrix, row in zip(self.matrices, (x, x * -2.0), strict=True):
            matrix[self.length : end].load(row)
        keys, values = (matrix[:end] for matrix in self.matrices)
        y = self.core.attention(x, keys, values, 1)
        return self.core.softmax(self.core.linear(y, self.head))

    def draw(self, rng, prefixes=None, end=7):
        self.length = 0
        limits = (None, None)
        return self.core.draw_tokens(self.replay, self, self.start, end, 4, rng, *limits, prefixes)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_prefix_that_was_computed_is_put_back_as_it_was(core, dtype):
    one, other = Summing(core, dtype), Summing(core, dtype)
    prefixes, drawn = core.Prefixes(one.matrices), []
    rng, same = Counting(1), Counting(1)
    for _ in range(60):
        drawn.append(tuple(one.draw(rng, prefixes)))
        assert list(drawn[-1]) == other.draw(same)
        assert one.length == other.length == len(drawn[-1]) - 1
        for mine, its in zip(one.matrices, other.matrices, strict=True):
            assert mine.tolist()[: one.length] == its.tolist()[: one.length]
    assert rng.calls == same.calls == len(other.computed) + 60
    assert len(one.computed) == len({doc[:i] for doc in drawn for i in range(1, len(doc))})
    assert len(one.computed) < len(other.computed) / 1.5


def test_prefixes_beyond_the_limit_are_computed_each_time(core):
    numbers = 4 + 5 + 3 + 3  # of a prefix
    for limit, most in ((-1, 0), (0, 0), (numbers - 1, 0), (numbers, 1), (10 * numbers + 1, 10)):
        one, other = Summing(core), Summing(core)
        prefixes, rng, same = core.Prefixes(one.matrices, limit), *map(random.Random, (1, 1))
        drawn = []
        for _ in range(60):
            drawn.append(tuple(one.draw(rng, prefixes)))
            assert list(drawn[-1]) == other.draw(same)
        kept, computed = set(), 0
        for doc in drawn:
            for i in range(1, len(doc)):
                if doc[:i] not in kept:
                    computed += 1
                    kept |= {doc[:i]} if len(kept) < most else set()
        assert len(one.computed) == computed
        assert (computed == len(other.computed)) == (most == 0)


def test_a_row_that_is_put_back_is_a_change_of_numbers(core):
    """So a gradient that would be computed from it is refused, as after any other change."""
    model, w = Summing(core), core.Matrix.of([[1.0, 2.0, 3.0]])
    prefixes = core.Prefixes(model.matrices)
    model.draw(None, prefixes)
    loss = core.mean(core.linear(model.matrices[0], w))
    assert model.draw(None, prefixes, end=1) and len(model.computed) > 1
    with pytest.raises(RuntimeError, match="linear"):
        loss.backward()


@pytest.mark.parametrize("length", [7, 10**9, -1])
def test_prefixes_need_a_row_for_each_token(core, length):
    (replay, after), cache = chain(core), SimpleNamespace(length=length)
    prefixes = core.Prefixes([core.Matrix(7, 2)])
    limits = (None, None)
    with pytest.raises(ValueError, match=f"position {length} is outside the 7 rows of keys"):
        core.draw_tokens(replay, cache, after[0], 10**10, 4, None, *limits, prefixes)
    assert cache.length == length


def test_what_prefixes_are_made_from_is_checked(core):
    with pytest.raises(TypeError, match="^each of matrices must be a Matrix, not int$"):
        core.Prefixes([core.Matrix(1, 1), 1])
    with pytest.raises(TypeError, match="expected an int, not float"):
        core.Prefixes([], 1.5)
    (replay, after), cache = chain(core), SimpleNamespace(length=0)
    for _ in range(2):  # of a model without rows
        cache.length = 0
        prefixes = core.Prefixes([], 10**30)
        assert core.draw_tokens(replay, cache, after[0], 9, 4, None, None, None, prefixes) == [
            1, 2, 3, 4,
        ]  # fmt: skip


class Meddling(random.Random):
    """Do something of one's own at each number that is drawn."""

    def __init__(self, seed, meddle):
        super().__init__(seed)
        self.meddle = meddle

    def random(self):
        self.meddle()
        return super().random()


def test_a_generator_may_draw_with_the_same_prefixes(core):
    model, other = Summing(core), Summing(core)
    prefixes, inner, depth = core.Prefixes(model.matrices), random.Random(8), []

    def meddle():
        if depth:
            return
        depth.append(1)
        length, rows = model.length, [m.tolist() for m in model.matrices]
        model.draw(inner, prefixes)
        model.length = length
        for matrix, numbers in zip(model.matrices, rows, strict=True):
            matrix.load(numbers)
        depth.clear()

    rng, same = Meddling(2, meddle), random.Random(2)
    for _ in range(40):
        assert model.draw(rng, prefixes) == other.draw(same)


def test_a_generator_may_change_the_matrices_or_raise(core):
    model = Summing(core)
    prefixes = core.Prefixes(model.matrices)
    draws = random.Random(4)

    def meddle():
        for matrix in model.matrices:
            matrix.load([[draws.random()] * 3] * 7)
        if draws.random() < 0.2:
            raise LookupError

    rng, ended = Meddling(2, meddle), 0
    for _ in range(80):
        try:
            assert set(model.draw(rng, prefixes)) <= set(range(5))
            ended += 1
        except LookupError:
            pass
    assert 0 < ended < 80


def test_a_generator_that_generates_and_changes_parameters(run):
    def generate_more():
        mg.generate(run, n=3, rng=random.Random(1))

    plain = mg.generate(run, n=8, rng=random.Random(6))
    assert mg.generate(run, n=8, rng=Meddling(6, generate_more)) == plain
    own = mg.train(["emma", "olivia", "ava", "mia"], steps=5, n_embd=8, n_head=2, block_size=8)

    def change():
        for param in own.model.parameters():
            param.load(param * 1.01)

    for seed in range(3):
        mg.generate(own, n=8, rng=Meddling(seed, change))
        after = mg.generate(own, n=8, rng=random.Random(seed))
        assert after == apart(own, 8, seed)


# What a run keeps from one call to the next

NAMES = ["emma", "olivia", "ava", "mia"]


class Watched(mg.GPT):
    """Replayable; counts how often its Python runs."""

    replayable = True
    runs = 0

    def forward(self, *args, **kwargs):
        type(self).runs += 1
        return super().forward(*args, **kwargs)


@pytest.mark.skipif(mg.BACKEND != "cython", reason="the pure core runs the model each time")
def test_a_second_call_runs_no_python_of_the_model():
    run = mg.prepare(NAMES, steps=2, n_embd=8, n_head=2, model=Watched)
    mg.generate(run, n=40, temperature=2.0, length=2)
    Watched.runs = 0
    assert len(mg.generate(run, n=3, temperature=2.0, length=2)) == 3
    assert Watched.runs == 0
    mg.generate(run, n=1, temperature=1.0, length=2)
    assert Watched.runs > 0


@pytest.mark.parametrize("change", [
    lambda run: mg.train_step(run),
    lambda run: run.model.state_dict["lm_head"].load(run.model.state_dict["wte"]),
    lambda run: mg.generate(run, n=2, prompt="a"),
    lambda run: mg.generate(run, n=2, temperature=0),
    lambda run: mg.generate(run, n=1, length=40),
    lambda run: pytest.raises(LookupError, mg.generate, run, rng=Failing(0)),
])  # fmt: skip
def test_what_a_run_keeps_changes_no_sample(change):
    runs = [mg.prepare(NAMES, steps=9, n_embd=8, n_head=2) for _ in range(2)]
    mg.generate(runs[0], n=5, rng=random.Random(0))
    for run in runs:
        change(run)
    for prompt in ("", "a"):
        one, other = (mg.generate(run, n=9, prompt=prompt, rng=random.Random(1)) for run in runs)
        assert one == other


class Failing(random.Random):
    def random(self):
        raise LookupError("enough")


def test_a_run_keeps_no_large_cache(monkeypatch):
    run = mg.prepare(NAMES, steps=1, n_embd=8, n_head=2, block_size=8)  # 128 numbers
    monkeypatch.setattr(mg.sampling, "KEPT_NUMBERS", 127)
    mg.generate(run, n=2)
    assert "_sampler" not in vars(run)
    monkeypatch.setattr(mg.sampling, "KEPT_NUMBERS", 128)
    mg.generate(run, n=2)
    assert "_sampler" in vars(run)
    assert "_sampler" not in vars(copy.deepcopy(run))


def test_what_a_run_keeps_is_freed_with_it():
    run = mg.prepare(NAMES, steps=1, n_embd=8, n_head=2)
    mg.generate(run, n=2)
    cache = weakref.ref(vars(run)["_sampler"]._cache)
    gc.disable()
    try:
        del run
        assert cache() is None
    finally:
        gc.enable()
