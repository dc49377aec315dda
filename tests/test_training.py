"""Training: what a step does, what a run keeps, what is refused."""

import copy
import gc
import math
import os
import pickle
import random
import sys
import threading
import time
from fractions import Fraction

import pytest
from processes import output_of

import microgpt as mg

DOCS = ["emma", "olivia", "ava", "isabella", "sophia"]
SMALL = {"n_embd": 8, "n_head": 2}  # where the size does not matter: the pure core is slow


def test_a_run_learns():
    run = mg.train(DOCS, steps=60, lr=0.03, **SMALL)
    assert len(run.losses) == 60
    assert sum(run.losses[-10:]) < 0.5 * sum(run.losses[:10])


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    one, same, other = (mg.train(DOCS, steps=5, seed=seed, **SMALL) for seed in (1, 1, 2))
    assert one.losses == same.losses
    assert one.losses != other.losses


def test_the_global_generator_and_the_given_list_are_left_alone():
    random.seed(5)
    state, docs = random.getstate(), list(DOCS)
    run = mg.train(docs, steps=2)
    mg.generate(run, n=2)
    assert random.getstate() == state
    assert docs == DOCS


def test_one_generator_shuffles_the_documents_then_draws_the_parameters():
    run = mg.prepare(DOCS, seed=3)
    rng, docs = random.Random(3), list(DOCS)
    rng.shuffle(docs)
    assert run.documents == docs
    assert run.model.state_dict["wte"].tolist()[0] == [rng.gauss(0, 0.08) for _ in range(16)]


def test_a_step_takes_the_next_document_and_returns_its_loss():
    run = mg.prepare(DOCS[:2], steps=3)
    for i in (0, 1, 0):
        expected = run.model.loss([run.tokenizer.encode(run.documents[i])]).data
        assert mg.train_step(run) == expected == run.losses[-1]
    with pytest.raises(ValueError, match="taken all its 3 steps"):
        mg.train_step(run)


def test_a_batch_is_the_mean_over_all_positions_of_its_documents():
    run = mg.prepare(DOCS, steps=4, batch_size=3, **SMALL)
    encode = run.tokenizer.encode
    for step in range(4):
        docs = [run.documents[i % 5] for i in range(3 * step, 3 * step + 3)]
        losses = [run.model.loss([encode(doc)]).data for doc in docs]
        lengths = [len(doc) + 1 for doc in docs]
        mean = sum(a * b for a, b in zip(losses, lengths, strict=True)) / sum(lengths)
        assert mg.train_step(run) == pytest.approx(mean, rel=1e-12)
    assert run.adam.step == 4


def test_a_batch_may_be_larger_than_the_documents():
    run = mg.train(DOCS, steps=3, batch_size=12, **SMALL)
    assert len(run.losses) == 3


def test_a_step_that_asks_for_too_much_memory_is_refused():
    for docs, settings in [
        (DOCS, {"batch_size": 10**6}), (["ab" * 10_000], {"block_size": 20_000}),
        (["ab" * 10_000], {"block_size": 20_000, "unit": "stream"}),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=r"a step of batch_size \d+ needs \S+ numbers"):
            mg.prepare(docs, steps=1, **settings)
    assert mg.train(DOCS, steps=1, block_size=20_000).losses  # no document is as long
    mg.prepare(DOCS, n_embd=256, batch_size=2000)  # not much for the size of its parameters


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc to measure memory")
@pytest.mark.parametrize(("length", "settings"), [
    (15, {"batch_size": 2000}), (15, {"batch_size": 500, "n_embd": 48, "n_layer": 2}),
    (1000, {"block_size": 1000}),
])  # fmt: skip
def test_a_step_takes_the_memory_that_it_is_said_to_need(compiled, length, settings):
    code = f"""
    import os, microgpt as mg
    docs = ["abcdefghij" * {length} for _ in range(3)]
    run = mg.prepare([doc[:{length}] for doc in docs], **{settings})
    def memory():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    before = memory()
    mg.train_step(run)
    longest = min({length} + 1, run.model.config.block_size)
    numbers = run.model.config.numbers(run.config.batch_size * longest, longest)
    print(memory() - before, 16 * numbers)  # each of them, and its gradient
    """
    measured, said = map(int, output_of(code.replace("\n    ", "\n"), backend="cython"))
    assert 0.3 * said < measured < 1.2 * said


def test_a_copy_of_a_run_that_another_thread_trains_is_of_one_step():
    def everything(run):
        return repr((state_of(run), run.adam.step, run.losses, run.tokens))

    settings = {"steps": 10, "n_embd": 4, "n_head": 2, "block_size": 4}
    run, states, seen = mg.prepare(DOCS, **settings), [], set()
    states.append(everything(run))
    states += [everything(run) for _ in mg.steps(run)]
    run = mg.prepare(DOCS, **settings)
    callback = {"callback": lambda *_: time.sleep(0.02)}  # so that it does not end at once
    thread = threading.Thread(target=mg.finish, args=(run,), kwargs=callback)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        thread.start()
        while thread.is_alive():
            for made in (pickle.loads(pickle.dumps(run)), copy.deepcopy(run)):
                assert everything(made) == states[made.adam.step]
                seen.add(made.adam.step)
    finally:
        sys.setswitchinterval(interval)
        thread.join()
    assert len(seen) > 1


def state_of(run):
    return [m.tolist() for m in (*run.adam.params, *run.adam.m, *run.adam.v)]


@pytest.mark.parametrize("sizes", [{}, {"n_layer": 2, "n_embd": 12, "n_head": 3, "block_size": 5}])
def test_replayed_steps_give_the_same_bits_as_steps_that_run_the_model(sizes, monkeypatch):
    steps = 40 if mg.BACKEND == "cython" else 5
    replayed = mg.train(mg.load_documents(), steps=steps, **sizes)
    monkeypatch.setattr(mg.GPT, "replayable", False)
    run = mg.train(mg.load_documents(), steps=steps, **sizes)
    assert run.losses == replayed.losses
    assert state_of(run) == state_of(replayed)


compiled_only = pytest.mark.skipif(mg.BACKEND == "python", reason="the pure core replays nothing")


class Counting(mg.GPT):
    """A model with its own forward, which counts how often it runs."""

    calls = 0

    def forward(self, tokens, cache=None, starts=None, trace=None):
        self.calls += 1
        return super().forward(tokens, cache, starts, trace)


class Declared(Counting):
    replayable = True


def test_a_model_with_its_own_forward_is_run_at_every_step():
    run = mg.prepare(["ab", "ba"], steps=6, model=Counting)
    losses = [mg.train_step(run) for _ in range(6)]
    assert run.model.calls == 6
    assert losses == mg.train(["ab", "ba"], steps=6).losses


@compiled_only
def test_a_model_that_declares_itself_replayable_runs_once():
    docs = ["ab", "ba", "abb"]
    run = mg.prepare(docs, steps=9, batch_size=2, model=Declared)
    losses = [mg.train_step(run) for _ in range(9)]
    assert run.model.calls == 1
    assert losses == mg.train(docs, steps=9, batch_size=2).losses


def test_a_subclass_does_not_inherit_that_it_is_replayable():
    class Child(Declared):
        pass

    assert (mg.GPT.replayable, Declared.replayable, Child.replayable) == (True, True, False)


@pytest.mark.parametrize("name", ["forward", "loss", "packed_loss", "config", "state_dict"])
def test_what_a_model_is_made_of_cannot_be_replaced_on_the_instance(name):
    """A replayed step would not notice."""
    run = mg.prepare(["ab"], steps=4)
    with pytest.raises(AttributeError):
        setattr(run.model, name, None)


def test_a_matrix_of_the_state_dict_cannot_be_exchanged():
    """Adam would go on with the old one."""
    run = mg.prepare(["ab"], steps=3)
    with pytest.raises(TypeError):
        run.model.state_dict["lm_head"] = mg.Matrix(3, 16)


@pytest.mark.parametrize("name", ["config", "tokenizer", "model", "adam", "rng"])
def test_what_a_run_is_made_of_cannot_be_exchanged(name):
    run = mg.prepare(["ab"], steps=3)
    with pytest.raises(AttributeError, match=f"the {name} of a run cannot be replaced"):
        setattr(run, name, getattr(run, name))


def test_settings_cannot_change_while_a_training_lasts():
    run = mg.prepare(["ab"], steps=3)
    with pytest.raises(AttributeError):
        run.config.steps = 5


def test_a_run_can_be_copied_and_pickled_in_the_middle():
    run = mg.prepare(DOCS, steps=8)
    for _ in range(4):
        mg.train_step(run)
    copies = [copy.deepcopy(run), pickle.loads(pickle.dumps(run))]
    rest = [mg.train_step(run) for _ in range(4)]
    for other in copies:
        assert [mg.train_step(other) for _ in range(4)] == rest
        assert mg.generate(other, 2) != []


def test_the_last_steps_are_small():
    run = mg.prepare(DOCS[:3], steps=100, n_embd=4, n_head=2)
    changes = []
    for _ in range(100):
        before = run.model.state_dict["wte"].tolist()
        mg.train_step(run)
        after = run.model.state_dict["wte"].tolist()
        changes.append(max(abs(a - b) for x, y in zip(after, before, strict=True)
                           for a, b in zip(x, y, strict=True)))
    assert changes[0] == pytest.approx(0.01, rel=1e-3)
    assert changes[-1] < 0.01 * 0.01 * 10


def test_the_callback_gets_every_step_and_its_metrics():
    seen = []
    run = mg.train(DOCS, steps=4, callback=lambda step, metrics: seen.append((step, metrics)))
    assert [(step, metrics["loss"]) for step, metrics in seen] == list(enumerate(run.losses, 1))
    assert [metrics["lr"] for _, metrics in seen] == [0.01, 0.0075, 0.005, 0.0025]
    lengths = [len(doc) + 1 for doc in run.documents[:4]]
    assert [metrics["tokens"] for _, metrics in seen] == [sum(lengths[:n]) for n in range(1, 5)]
    seconds = [metrics["seconds"] for _, metrics in seen]
    assert 0 < seconds[0] < seconds[1] < seconds[2] < seconds[3] == run.seconds
    assert all(list(m) == ["step", "loss", "lr", "tokens", "seconds"] for _, m in seen)
    assert [metrics["step"] for _, metrics in seen] == [1, 2, 3, 4]


def test_the_validation_loss_is_told_where_it_was_measured():
    seen = {}
    options = {"steps": 5, "val_fraction": 0.4, "eval_every": 2}
    run = mg.train(DOCS, **options, callback=seen.__setitem__)
    assert [step for step, metrics in seen.items() if "val_loss" in metrics] == [2, 4, 5]
    assert seen[5]["val_loss"] == run.val_loss()
    assert run.losses == mg.train(DOCS, steps=5, val_fraction=0.4).losses


def test_validation_documents_are_others_than_those_of_the_training():
    docs = mg.load_documents()[:200]
    run = mg.prepare(docs * 3, val_fraction=0.1)
    assert (len(run.documents), len(run.validation)) == (180, 20)
    assert sorted(run.documents + run.validation) == sorted(docs)


def test_without_a_validation_part_duplicates_stay():
    assert len(mg.prepare(DOCS * 3).documents) == 15


def test_the_windows_of_a_stream_follow_from_the_seed_and_the_step():
    text = "".join(map(chr, range(100, 200)))
    run = mg.prepare([text], steps=2, unit="stream", block_size=8, batch_size=3)
    bos, state = run.tokenizer.bos, run.rng.getstate()
    for step in (0, 1, 0):
        rng = random.Random(f"42/{step}")
        starts = [rng.randint(0, 92) for _ in range(3)]
        assert run.batch(step) == [[bos, *range(start, start + 8)] for start in starts]
    assert run.rng.getstate() == state
    assert run.num_cut == 0


def test_the_validation_part_of_a_stream_is_its_end():
    text = "abcdefghijklmnopqrstuvwxyz" * 4
    run = mg.prepare([text], unit="stream", block_size=8, val_fraction=0.2)
    assert run.documents + ["".join(run.validation)] == [text[:83], text[83:]]
    assert [len(window) for window in run.validation] == [8, 8, 5]
    assert math.isfinite(run.val_loss())


@pytest.mark.parametrize("text", ["a", "ab", "abcdefgh"])
def test_a_stream_may_be_shorter_than_a_window(text):
    assert len(mg.train([text], steps=2, unit="stream").losses) == 2


def test_a_run_may_start_from_the_parameters_of_another(tmp_path):
    first = mg.train(DOCS, steps=3, n_embd=8)
    mg.save(first, tmp_path / "first")
    run = mg.prepare(["live", "love"], steps=2, init=mg.load(tmp_path / "first"))
    assert (run.model.config, run.tokenizer) == (first.model.config, first.tokenizer)
    assert state_of(run)[:9] == state_of(first)[:9]
    assert not any(any(row) for m in (*run.adam.m, *run.adam.v) for row in m.tolist())
    assert run.adam.step == 0
    with pytest.raises(ValueError, match="'z' is not in the alphabet"):
        mg.prepare(["zoe"], init=mg.load(tmp_path / "first"))


def test_documents_that_do_not_fit_are_counted_and_cut():
    run = mg.prepare(["abc", "abcd", "abcde"], steps=3, block_size=4)
    assert run.num_cut == 2  # "abc" and the BOS behind it are the four targets that fit
    for _ in range(3):
        assert math.isfinite(mg.train_step(run))


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_parameters():
    run = mg.prepare(DOCS, steps=3)
    mg.train_step(run)
    run.model.state_dict["lm_head"][0][0].data = math.inf
    before = run.model.state_dict["wte"].tolist()
    with pytest.raises(FloatingPointError, match="at step 2"):
        mg.train_step(run)
    assert run.model.state_dict["wte"].tolist() == before
    assert len(run.losses) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps must be at least 0, not -1"),
        ({"lr": -0.1}, "lr must be a finite number"),
        ({"lr": math.nan}, "lr must be a finite number"),
        ({"lr": math.inf}, "lr must be a finite number"),
        ({"n_embd": 10}, "n_embd must be a multiple of n_head"),
        ({"n_layer": 0}, "n_layer must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"val_fraction": 1.0}, "val_fraction must be below 1, not 1.0"),
        ({"val_fraction": math.nan}, "val_fraction must be"),
        ({"val_fraction": 0.99}, "val_fraction 0.99 of 5 leaves nothing to train on"),
        ({"unit": "words"}, "unit must be line, paragraph or stream, not 'words'"),
        ({"steps": 10**13}, "steps must be at most 1000000000000, not 10000000000000"),
        ({"seed": 10**5000}, "seed must be at most .*, not a number of about 5000 digits"),
        ({"lr": 10**400}, "lr must be a finite number of at least 0, not a number of about 400"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mg.train(DOCS, **options)


def test_no_documents_and_empty_documents_are_refused():
    with pytest.raises(ValueError, match="at least one document"):
        mg.train([])
    with pytest.raises(ValueError, match="document 2 is empty"):
        mg.train(["a", ""])


def test_no_steps_are_a_run_too():
    run = mg.train(DOCS, steps=0)
    assert run.losses == []
    assert len(mg.generate(run, n=3)) == 3


@pytest.mark.parametrize("enabled", [True, False])
def test_the_cyclic_collector_is_as_before_after_a_step_and_after_a_failed_one(enabled):
    run = mg.prepare(DOCS, steps=2)
    before = gc.isenabled()
    try:
        gc.enable() if enabled else gc.disable()
        mg.train_step(run)
        assert gc.isenabled() == enabled
        run.model.state_dict["lm_head"][0][0].data = math.nan
        with pytest.raises(FloatingPointError):
            mg.train_step(run)
        assert gc.isenabled() == enabled
    finally:
        gc.enable() if before else gc.disable()


def in_threads(n, work):
    threads = [threading.Thread(target=work, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.fixture
def switching_often():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def test_steps_that_two_threads_take_of_one_run_are_refused_or_those_of_one(switching_often):
    sizes = {"n_embd": 48, "block_size": 8} if mg.BACKEND == "cython" else {"n_embd": 4}
    steps = 60 if mg.BACKEND == "cython" else 12
    alone, run = (mg.prepare(DOCS, steps=steps, batch_size=2, **sizes) for _ in range(2))
    refused, losses = [], []

    def work(_):
        while run.adam.step < steps:
            try:
                losses.append(mg.train_step(run))
            except (RuntimeError, ValueError) as error:
                refused.append(str(error))

    in_threads(3, work)
    mg.finish(alone)
    assert set(refused) <= {
        "another thread is taking a step of this run", f"the run has taken all its {steps} steps"
    }  # fmt: skip
    assert run.losses == alone.losses and sorted(losses) == sorted(alone.losses)
    assert run.adam.step == steps
    for name, matrix in alone.model.state_dict.items():
        assert run.model.state_dict[name].tolist() == matrix.tolist()


def test_the_documents_of_a_step_are_those_of_the_run_cut_to_the_block():
    run = mg.prepare(["ab", "cabbac", "b"], steps=9, batch_size=2, block_size=3)
    for step in range(6):
        docs = [run.documents[i % 3] for i in (2 * step, 2 * step + 1)]
        assert run.batch(step) == [run.encode(doc)[:4] for doc in docs]
    run.documents = ["c"]
    assert run.batch(0) == [[3, 2, 3]] * 2


def test_minimize_of_replayed_losses_is_backward_and_update_to_the_bit():
    """Of few and many rows by turns, where inner gradients are looked at now and then."""
    width, lengths = (64, (3, 60, 60, 5, 40)) if mg.BACKEND == "cython" else (4, (1, 3, 2))
    docs = ["abcdefgh"[: 1 + n % 8] * n for n in lengths]
    runs = [
        mg.prepare(docs, n_embd=width, n_layer=2, block_size=64, batch_size=n) for n in (1, 3)
    ]
    once, again = (mg.prepare(docs, init=runs[0], n_embd=4) for _ in range(2))
    replay = mg.Replay(once.model.packed_loss)
    for step in range(12):
        batch = mg.pack_documents(runs[step % 2].batch(step), 64)
        loss = replay(*batch)
        if step % 5 == 3:
            loss.backward()
            [losses] = loss._inputs
            assert [x for [x] in losses.grad.tolist()] == [1 / len(batch[0])] * len(batch[0])
            [logits] = losses._inputs
            assert memoryview(logits.grad).nbytes
            del losses, logits
            once.adam.zero_grad()
        once.adam.minimize(loss, 0.01)
        del loss
        again.model.packed_loss(*batch).backward()
        again.adam.update(0.01)
        for x, y in zip(once.model.parameters(), again.model.parameters(), strict=True):
            assert x.tolist() == y.tolist()


def test_a_step_within_a_step_of_the_same_run_is_refused(monkeypatch):
    """Not waited for, which would be for ever."""
    run, met = mg.prepare(DOCS, steps=3), []
    pack = mg.Run._pack

    def pack_and_step(run, step):
        with pytest.raises(RuntimeError, match="taking a step of this run"):
            mg.train_step(run)
        met.append(step)
        return pack(run, step)

    monkeypatch.setattr(mg.Run, "_pack", pack_and_step)
    mg.finish(run)
    assert met == [0, 1, 2]


@pytest.mark.parametrize("enabled", [True, False])
def test_the_cyclic_collector_is_as_before_after_trainings_in_threads(enabled, switching_often):
    before, n, seen = gc.isenabled(), 30 if mg.BACKEND == "cython" else 3, []

    def work(seed):
        run = mg.train(DOCS, steps=n + seed, seed=seed, n_embd=8)
        run.model.state_dict["lm_head"][0][0].data = math.nan
        with pytest.raises(FloatingPointError):
            mg.train_step(mg.prepare(DOCS, init=run, steps=1))
        seen.append(seed)

    try:
        gc.enable() if enabled else gc.disable()
        in_threads(4, work)
        assert gc.isenabled() == enabled
        assert sorted(seen) == [0, 1, 2, 3]
    finally:
        gc.enable() if before else gc.disable()


@pytest.mark.parametrize("enabled", [True, False])
def test_a_step_in_the_middle_of_another_finds_no_lock_taken(enabled):
    """The handler of a signal may take one of another run between any two lines."""
    before, inside, steps = gc.isenabled(), [], []

    def trace(frame, event, _):
        if not frame.f_code.co_filename.endswith(("training.py", "interrupts.py")):
            return None
        if event == "line" and frame.f_code.co_name in ("paused", "train_step") and not inside:
            inside.append(None)
            steps.append(mg.train_step(mg.prepare(DOCS[:1], steps=1, n_embd=4)))
            inside.clear()
        return trace

    run, old = mg.prepare(DOCS[:1], steps=2, n_embd=4), sys.gettrace()
    try:
        gc.enable() if enabled else gc.disable()
        sys.settrace(trace)
        mg.train_step(run)
        sys.settrace(old)
        assert gc.isenabled() == enabled and run.adam.step == 1
        assert len(steps) >= (3 if mg.BACKEND == "cython" else 8)
    finally:
        sys.settrace(old)
        gc.enable() if before else gc.disable()


def test_a_path_in_place_of_documents_is_refused():
    with pytest.raises(TypeError, match="load_documents reads a file"):
        mg.train("names.txt")
    with pytest.raises(TypeError, match="a document must be a string, not bytes"):
        mg.train([b"emma"])


@pytest.mark.parametrize("options", [
    {"steps": 2.5}, {"steps": "9"}, {"batch_size": 1.5}, {"steps": True}, {"seed": "abc"},
    {"seed": None}, {"seed": 1.5}, {"n_embd": True}, {"n_layer": 1.0},
])  # fmt: skip
def test_counts_that_are_not_ints_are_refused(options):
    with pytest.raises(TypeError, match="must be an int, not"):
        mg.prepare(DOCS, **options)


@pytest.mark.parametrize("options", [{"lr": True}, {"lr": "0.1"}, {"val_fraction": False}])
def test_rates_that_are_no_numbers_are_refused(options):
    with pytest.raises(TypeError, match="must be a number, not"):
        mg.prepare(DOCS, **options)


def test_numbers_of_other_types_are_converted():
    class Whole:
        def __index__(self):
            return 7

    config = mg.TrainConfig(steps=Whole(), lr=Fraction(1, 4))
    assert (config.steps, type(config.steps)) == (7, int)
    assert (config.lr, type(config.lr)) == (0.25, float)
    assert type(mg.Config(Whole()).vocab_size) is int


def test_a_step_under_no_grad_is_refused():
    run = mg.prepare(DOCS, steps=1)
    with mg.no_grad(), pytest.raises(RuntimeError, match="no_grad"):
        mg.train_step(run)
    assert mg.train_step(run) > 0


def test_the_validation_seed_chooses_the_validation_documents_alone():
    docs = [f"{a}{b}" for a in "abcdef" for b in "abcdef"]
    one, two, other = (
        mg.prepare(docs, seed=seed, val_seed=val_seed, val_fraction=0.25, **SMALL)
        for seed, val_seed in ((1, 7), (2, 7), (1, 8))
    )
    assert one.validation == two.validation and len(one.validation) == 9
    assert set(one.validation) != set(other.validation)
    assert one.documents != two.documents and sorted(one.documents) == sorted(two.documents)
    assert sorted(one.documents + one.validation) == docs
    with pytest.raises(ValueError, match="^val_seed .* needs a val_fraction$"):
        mg.prepare(docs, val_seed=7)
    with pytest.raises(TypeError, match="val_seed must be an int, not str"):
        mg.TrainConfig(val_seed="7")


def test_what_a_notebook_shows_is_short():
    run = mg.train(DOCS, steps=3, n_embd=32)
    loss = sum(run.losses) / 3
    assert repr(run) == f"Run(step 3 of 3, loss {loss:.2f}, GPT {run.model.num_params:,} params)"
    assert repr(mg.prepare(["ab"], steps=5)) == "Run(step 0 of 5, GPT 3,424 params)"
    sizes = "vocab_size 12, n_layer 1, n_embd 32, n_head 4, block_size 16"
    assert repr(run.model) == f"GPT({run.model.num_params:,} params, {sizes})"
    assert repr(run.adam) == "Adam(step 3, 9 Matrices, beta1 0.85, beta2 0.99, eps 1e-08)"
    assert repr(mg.Cache(run.model.config)) == "Cache(0 of 16 tokens)"
    assert "GPT.packed_loss of GPT(" in repr(mg.Replay(run.model.packed_loss))


def test_parameters_and_a_call_are_there_for_who_expects_them():
    run = mg.prepare(["ab"])
    assert run.model.parameters() == list(run.model.state_dict.values())
    assert run.model.parameters() == list(run.adam.params)
    assert run.model([0, 1]).tolist() == run.model.forward([0, 1]).tolist()
    trace = {}
    with mg.no_grad():
        run.model([0], mg.Cache(run.model.config), trace=trace)
    assert "logits" in trace


def test_the_names_of_the_package_are_the_public_ones():
    names = [name for name in dir(mg) if not name.startswith("__")]
    assert sorted(names) == sorted(set(mg.__all__) - {"__version__"})


def test_a_text_or_a_model_in_the_wrong_place_is_said_so():
    run = mg.prepare(["ab"])
    for call in (run.model.loss, run.model.forward, lambda text: mg.score(run.model, text)):
        with pytest.raises(TypeError, match="Tokenizer.encode makes ids of a text"):
            call(["ab"] if call == run.model.loss else "ab")
    with pytest.raises(TypeError, match="generate takes a run"):
        mg.generate(run.model)


@pytest.mark.parametrize(("settings", "message"), [
    ({"step": 3}, "^train has no setting 'step'; did you mean steps\\?$"),
    ({"n_embed": 3}, "^train has no setting 'n_embed'; did you mean n_embd\\?$"),
    ({"epochs": 3}, "^train has no setting 'epochs'; the settings are init, model, steps, lr, "),
    ({"progress": "x"}, "^progress must be True, False or None, not 'x'$"),
    ({"callback": 3}, "^callback must be a function, not int$"),
    ({"eval_every": "x"}, "^eval_every must be an int, not str$"),
])  # fmt: skip
def test_a_setting_that_train_does_not_have_is_told_before_a_step(settings, message):
    with pytest.raises(TypeError, match=message):
        mg.train(["ab", "ba"], **settings)


def test_help_of_train_names_the_settings_and_what_an_interrupt_leaves():
    names = [*mg.prepare.__kwdefaults__, "progress", "callback", "eval_every", "sys.last_value"]
    assert [name for name in names if name not in mg.train.__doc__] == []


def test_what_takes_a_run_or_a_model_says_which():
    run = mg.prepare(["ab", "ba"], steps=2)
    wrong = [
        (lambda: mg.prepare(["ab"], init="m"), "^init takes a run, of prepare, .*, not str$"),
        (lambda: mg.finish(3), "^finish takes a run, of prepare, train or load, not int$"),
        (lambda: mg.generate("x"), "^generate takes a run, of prepare, train or load, not str$"),
        (lambda: mg.score(run, "ab"), "as in score\\(run.model, run.encode\\(text\\)\\), not Run$"),
        (lambda: mg.mean_loss(run, []), "as in mean_loss\\(run.model, .*, not Run$"),
        (lambda: mg.sample(run, 0, run.rng), "^sample takes a model, .*; generate takes a run$"),
        (lambda: mg.sample(run.model), "^sample takes a model, BOS and a generator, sample"),
        (lambda: run.model.loss([2, 0, 1, 2]), "^loss takes a list of documents, .*loss.*ids"),
        (lambda: mg.sample(3, 0, run.rng), "a model is needed, as in sample\\(.*, not int$"),
    ]  # fmt: skip
    for call, message in wrong:
        with pytest.raises(TypeError, match=message):
            call()
    assert run.decode(run.encode("ab")) == "ab"


def test_a_matrix_that_is_no_parameter_gets_a_word_once(capsys):
    class Forgetful(mg.GPT):
        def __init__(self, config, rng):
            super().__init__(config, rng)
            self.bias, self.tied = mg.Matrix(1, 16), self.state_dict["wte"]

    for _ in range(2):
        mg.train(["ab", "ba"], model=Forgetful, steps=1, progress=True)
    err = capsys.readouterr().err
    assert err.count("the Matrix bias of Forgetful is not a parameter") == 1 and "tied" not in err
