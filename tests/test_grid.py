"""Which trials a sweep has, and by what a trial is known."""

import math
from itertools import count, product
from random import Random

import pytest

import microgpt as mg
from microgpt import trials
from microgpt.grid import MAX_TRIALS, plan

DATA = mg.checksum(["emma", "olivia"])


def settings(planned, *names):
    return [tuple(trial.settings[name] for name in names) for trial in planned]


def test_every_combination_is_a_trial_in_the_order_of_the_grid():
    planned = plan({"lr": [0.1, 0.01], "seed": [1, 2], "n_embd": (8, 16)}, DATA)
    expected = [(lr, n, seed) for lr, n, seed in product([0.1, 0.01], [8, 16], [1, 2])]
    assert settings(planned, "lr", "n_embd", "seed") == expected
    assert all(trial.settings["steps"] == 1000 and not trial.refused for trial in planned)


def test_all_trials_have_the_same_validation_documents():
    [trial] = plan({}, DATA)
    assert (trial.settings["val_fraction"], trial.settings["val_seed"]) == (0.1, 0)
    [trial] = plan({"val_fraction": 0.5, "val_seed": 7}, DATA)
    assert (trial.settings["val_fraction"], trial.settings["val_seed"]) == (0.5, 7)


def test_a_setting_of_prepare_is_one_of_a_sweep():
    [trial] = plan({}, "data")
    mg.prepare(["emma", "olivia", "ava"], **trial.settings)
    assert trial.settings.keys() == mg.prepare.__kwdefaults__.keys() - {"init", "model", "record"}


def test_duplicate_values_are_one_trial():
    planned = plan({"lr": [1, 1.0, 1], "seed": [3, 3]}, DATA)
    assert settings(planned, "lr", "seed") == [(1.0, 3)]


def test_a_trial_is_known_by_settings_data_version_and_core(monkeypatch):
    [trial] = plan({"lr": 0.1}, DATA)
    assert plan({"lr": [0.1], "n_embd": 16}, DATA)[0].id == trial.id  # defaults given or not
    assert trial.file == f"trial-{trial.id}.safetensors"
    others = [plan({"lr": 0.2}, DATA)[0].id, plan({"lr": 0.1}, mg.checksum(["emma"]))[0].id]
    monkeypatch.setattr(trials, "MADE_BY", "microgpt 0.0.0, core cython")
    others.append(plan({"lr": 0.1}, DATA)[0].id)
    assert len({trial.id, *others}) == 4


def test_a_combination_that_cannot_be_is_a_trial_with_its_reason():
    planned = plan({"n_embd": [16, 18]}, DATA)
    assert [trial.refused for trial in planned] == [
        "", "n_embd must be a multiple of n_head, not 18 with 4 heads"
    ]  # fmt: skip


@pytest.mark.parametrize(("grid", "error", "message"), [
    ({"learning_rate": 1}, ValueError, "there is no setting 'learning_rate'"),
    ({"n_embed": 16}, ValueError, "did you mean n_embd"),
    ({"model": mg.GPT}, ValueError, "there is no setting 'model'"),
    ([("lr", 1)], TypeError, "grid must be a dict of settings to values, not a list"),
    (None, TypeError, "not a NoneType"),
    ({7: 1}, ValueError, "there is no setting 7"),
    ({"lr": []}, ValueError, "lr has no value"),
    ({"lr": [0.1, -1]}, ValueError, "lr must be"),
    ({"lr": [0.1, math.nan]}, ValueError, "lr must be"),
    ({"lr": "fast"}, TypeError, "lr must be a number"),
    ({"lr": None}, TypeError, "lr must be a number"),
    ({"n_embd": 16.5}, TypeError, "n_embd must be an int"),
    ({"n_head": [0]}, ValueError, "n_head must be at least 1"),
    ({"n_embd": 18}, ValueError, "n_embd must be a multiple of n_head, not 18"),
    ({"val_seed": [1, 2]}, ValueError, "val_seed is the same for every trial"),
    ({"unit": ["line", "stream"]}, ValueError, "unit is the same for every trial"),
    ({"unit": "word"}, ValueError, "unit must be line, paragraph or stream"),
    ({"val_seed": None}, ValueError, "val_seed must not be None"),
    ({"val_fraction": 0}, ValueError, "val_fraction must not be 0"),
    ({"seed": mg.LogUniform(1, 3)}, ValueError, "seed takes a list"),
    ({"lr": mg.LogUniform(0.1, 0.2)}, ValueError, "lr is a range, 0.1..0.2"),
    ({"n_embd": mg.LogUniform(0.5, 8)}, TypeError, "n_embd must be an int"),
    ({"lr": range(1000), "steps": range(1000)}, ValueError, "more than 100000 trials"),
])  # fmt: skip
def test_a_bad_grid_is_one_line(grid, error, message):
    with pytest.raises(error, match=message) as raised:
        plan(grid, DATA)
    assert "\n" not in str(raised.value)


def test_a_grid_may_be_as_large_as_it_says():
    names = "steps", "lr", "n_embd", "batch_size", "n_layer"
    with pytest.raises(ValueError, match="1" + 15 * "0"):  # not counted one by one
        plan({name: range(1, 1001) for name in names}, DATA)
    with pytest.raises(ValueError, match="lr has more than 100000 values"):
        plan({"lr": count(1)}, DATA)
    planned = plan({"lr": [x / MAX_TRIALS for x in range(2000)]}, DATA)
    assert len({trial.id for trial in planned}) == 2000


def test_drawn_values_are_in_their_range_and_log_uniform():
    rng, floats, ints = Random(1), mg.LogUniform(0.001, 0.1), mg.LogUniform(1, 8)
    drawn = [floats.draw(rng) for _ in range(4000)]
    assert all(0.001 <= x <= 0.1 and x == float(f"{x:.4g}") for x in drawn)
    assert 0.45 < sum(x < 0.01 for x in drawn) / 4000 < 0.55  # half of them per factor of 10
    drawn = [ints.draw(rng) for _ in range(4000)]
    assert set(drawn) == set(range(1, 9)) and all(type(x) is int for x in drawn)
    assert abs(drawn.count(1) / 4000 - math.log(2) / math.log(9)) < 0.04
    assert mg.LogUniform(0.12345678, 0.12345679).draw(rng) in (0.12345678, 0.12345679)


@pytest.mark.parametrize("ends", [(0, 1), (-1, 1), (2, 1), (math.nan, 1), (1, math.inf)])
def test_a_range_has_two_ends_in_order(ends):
    with pytest.raises(ValueError):
        mg.LogUniform(*ends)


def test_draws_repeat_and_more_of_them_begin_with_the_same():
    grid = {"lr": mg.LogUniform(0.001, 0.1), "n_embd": [8, 16], "seed": [1, 2]}
    few, many = plan(grid, DATA, 3), plan(grid, DATA, 10)
    assert len(few) == 6 and len(many) == 20 and many[:6] == few
    assert settings(few, "seed")[:2] == [(1,), (2,)]
    assert len(set(settings(many, "lr"))) == 10
    more = plan({**grid, "batch_size": mg.LogUniform(1, 4)}, DATA, 3)
    assert settings(more, "lr") == settings(few, "lr")
    assert settings(plan(grid, DATA, 3, draw_seed=1), "lr") != settings(few, "lr")


def test_only_valid_and_different_combinations_are_drawn():
    planned = plan({"n_embd": mg.LogUniform(4, 64)}, DATA, 10)
    assert all(trial.settings["n_embd"] % 4 == 0 and not trial.refused for trial in planned)
    assert len(plan({"lr": [0.1, 0.2], "n_embd": [16, 18]}, DATA, 50)) == 2  # there are no more
    with pytest.raises(ValueError, match="multiple of n_head"):
        plan({"n_embd": mg.LogUniform(5, 7)}, DATA, 2)
    with pytest.raises(ValueError, match="trials must be at least 1"):
        plan({}, DATA, 0)
