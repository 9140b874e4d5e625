"""RED on four tasks: numbers, pictures, sentences, from the records of the book."""

from __future__ import annotations

import math

import pytest

from reprolib.errors import InvalidInput
from reprolib.records import Record
from reprolib.records.record import joined
from reprolib.show.red import four_tasks
from reprolib.show.red.comparison import PAIRS, Comparison, short
from reprolib.show.red.seen import seen

COLUMNS = ("mnist", "cifar10", "cifar100", "autoencoder")


@pytest.fixture(scope="module", params=["smoke", "desk"])
def comparison(request):
    return Comparison({column: Record.load(f"red/{column}", request.param) for column in COLUMNS})


@pytest.fixture(scope="module")
def best():
    return Comparison({column: Record.load(f"red/{column}", "desk") for column in COLUMNS})


def test_a_record_has_one_task():
    two = joined("red", [Record.load(f"red/{column}", "smoke") for column in ("mnist", "cifar10")])
    with pytest.raises(InvalidInput, match="digits-classifier, digits-convnet"):
        Comparison({"mnist": two})


def test_ratios_are_those_of_the_last_losses(best):
    for (name, red, seed), row in best.ratios.iterrows():
        last = {m: best.runs[name, m, seed]["loss"].dropna().iloc[-1] for m in (red, PAIRS[red])}
        assert math.isclose(row["epoch"], last[red] / last[PAIRS[red]])
        assert row["gradients"] >= 0.99 * row["epoch"]  # a loss that is stopped earlier has fallen less


def test_at_equal_gradients_red_is_stopped_where_the_baseline_ends(best):
    name, seed = next(iter(best.tasks)), 0
    end = best.final.loc[(name, "sgd", seed)]
    run = best.runs[name, "red-sgd", seed]
    reached = best.ratios.loc[(name, "red-sgd", seed), "gradients"] * end["loss"]
    stopped = run.loc[(run["loss"] - reached).abs().idxmin()]
    after = run[run["iteration"] > stopped["iteration"]]
    assert stopped["gradients"] <= end["gradients"] < after["gradients"].iloc[0]


def test_untrained_and_guessing(best):
    mnist, cifar10, cifar100, autoencoder = best.tasks
    assert best.guessing(autoencoder) is None
    assert best.guessing(mnist) == math.log(10)
    assert best.guessing(cifar100) == math.log(100)
    assert abs(best.start[cifar10, "red-sgd", 0] - math.log(10)) < 0.6
    assert {name for name, _ in best.telling()} == {mnist, autoencoder}


def test_every_run_is_fair(comparison):
    assert len(comparison.sound) == 5
    for statement, holds in comparison.sound.items():
        assert holds, statement


def test_ratios_show_every_seed_and_say_who_is_lower(best):
    figure = four_tasks.ratios(best)
    assert figure.get_suptitle().replace("\n", " ").startswith("At equal epochs untuned RED is below")
    _, gradients = figure.axes
    marks = [line for line in gradients.lines if line.get_marker() in "os" and len(line.get_xdata())]
    assert len(marks) == len(best.means)
    drawn = sorted(x for line in marks for x in line.get_xdata())
    assert drawn == sorted(best.ratios["gradients"])
    assert {"RED-SGD", "RED-RMSProp", "SGD, rate 0.001", "untrained network"} <= {
        t.get_text() for t in figure.legends[0].get_texts()
    }


@pytest.mark.parametrize("name", ["losses", "steps", "test", "tuning", "price"])
def test_pictures_have_at_most_four_panels_and_a_title_that_argues(name, comparison):
    figure = getattr(four_tasks, name)(comparison)
    assert 1 <= len(figure.axes) <= 4
    assert any(c.isdigit() for c in figure.get_suptitle()) or "of eight" in figure.get_suptitle()
    assert all(ax.has_data() for ax in figure.axes)
    assert figure.legends


def test_titles_follow_the_numbers(best):
    assert f"{best.means['epoch'].max():.2f}" in four_tasks.losses(best).get_suptitle()
    assert f"{best.costs[list(PAIRS)].to_numpy().max():.1f}" in four_tasks.price(best).get_suptitle()


def test_what_was_seen_has_a_sentence_for_each_claim(comparison):
    found = seen(comparison)
    assert set(found) == {"red-c01", "red-c02", "red-c03", "red-c04", "red-c05", "red-tab3-time"}
    for sentence in found.values():
        assert sentence.endswith(".")
        assert "nan" not in sentence


def test_names_do_not_say_tuned():
    assert [short(name) for name in (*PAIRS, *PAIRS.values())] == ["RED-SGD", "RED-RMSProp", "SGD", "RMSProp"]
