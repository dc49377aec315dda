"""The table of a sweep, from results made by hand."""

import json

import pytest

from microgpt.ranking import Sweep
from microgpt.trials import DEFAULTS, Result


def result(seed, val_loss, error="", **settings):
    path = "" if error else f"runs/{len(settings)}-{seed}"
    settings = {**DEFAULTS, "seed": seed, **settings}
    return Result(settings, f"{seed}", path, val_loss, val_loss, error)


RESULTS = [
    result(1, 3.0, lr=0.1), result(2, 2.0, lr=0.1), result(3, 4.0, lr=0.1),
    result(1, 2.5, lr=0.2), result(2, 2.5, lr=0.2), result(3, 2.75, lr=0.2),
    result(1, 1.0, lr=0.3), result(2, None, "boom", lr=0.3), result(3, None, "boom", lr=0.3),
    result(1, None, "bang", lr=0.4), result(2, None, "boom", lr=0.4), result(3, 1.5, lr=0.5),
]  # fmt: skip


def test_settings_are_ranked_by_the_mean_over_seeds_and_failures_stand_behind():
    found = Sweep(RESULTS)
    ranked = [(c.settings["lr"], c.val_loss, c.failed) for c in found.configurations]
    assert ranked[:3] == [(0.5, 1.5, 0), (0.2, 31 / 12, 0), (0.1, 3.0, 0)]
    assert ranked[3:] == [(0.3, 1.0, 2), (0.4, None, 2)]
    spreads = [c.spread for c in found.configurations]
    assert spreads == [None, pytest.approx((1 / 48) ** 0.5), 1.0, None, None]
    assert found.varied == ["lr"] and found.best is RESULTS[-1]
    assert repr(found) == "Sweep(12 trials, 4 failed, best val loss 1.5000)"


def test_the_table():
    assert str(Sweep(RESULTS)) == """\
rank  val loss  spread   seeds   lr  best file
   1    1.5000       -       1  0.5  runs/1-3
   2    2.5833  0.1443       3  0.2  runs/1-1
   3    3.0000  1.0000       3  0.1  runs/1-2
   4    1.0000       -  1 of 3  0.3  runs/1-1
failed: lr 0.3, seed 2, 3: boom
failed: lr 0.4, seed 1: bang
failed: lr 0.4, seed 2: boom"""


def test_what_happens_to_be_equal_stays_in_the_order_of_the_grid():
    found = Sweep([result(1, 2.0, lr=x) for x in (0.3, 0.1, 0.2)])
    assert [c.settings["lr"] for c in found.configurations] == [0.3, 0.1, 0.2]


def test_a_table_of_one_setting_and_of_none():
    assert str(Sweep([result(1, 2.0)])).splitlines()[1].split() == ["1", "2.0000", "-", "1",
                                                                    "runs/0-1"]  # fmt: skip
    assert str(Sweep([result(1, 2e10)])).splitlines()[1].split()[1] == "2e+10"
    assert str(Sweep([])) == "" and Sweep([]).best is None
    assert repr(Sweep([])) == "Sweep(0 trials, 0 failed)"
    assert repr(Sweep(RESULTS[-1:])) == "Sweep(1 trial, 0 failed, best val loss 1.5000)"


def test_json_has_every_trial():
    found = json.loads(Sweep(RESULTS).to_json())
    assert found["best"] == "runs/1-3" and len(found["configurations"]) == 5
    assert found["configurations"][3]["trials"][1] == {
        "seed": 2, "val_loss": None, "loss": None, "file": "", "error": "boom"
    }  # fmt: skip
