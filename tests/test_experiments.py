"""The experiments: a quick run of each shows its result, and the committed results carry what their page says."""

from __future__ import annotations

import csv
import doctest
import importlib
import json
import re

import numpy as np
import pytest

from tools.experiments import NAMES, common, runner

RESULTS = common.RESULTS
PAGE = RESULTS.parent / "README.md"


def experiment(name):
    return importlib.import_module(f"tools.experiments.{name}")


def mean(rows, value, **want):
    found = [row[value] for row in common.select(rows, **want)]
    assert found, want
    return float(np.mean(found))


@pytest.fixture(scope="module")
def quick():
    """Run each experiment at most once."""
    done = {}

    def run(name):
        if name not in done:
            done[name] = experiment(name).run(seeds=(0, 1), quick=True)
        return done[name]

    return run


@pytest.mark.slow
class TestQuickRuns:
    def test_capacity_is_the_width_its_square_and_more(self, quick):
        capacity = experiment("capacity")
        found = common.select(capacity.capacities(quick("capacity")), training="converged", measure="error")
        pairs = {model: mean(found, "pairs", model=model) for model in ("matrix", "degree 2", "MLP")}
        assert 7 < pairs["matrix"] < 10  # d_k = 8
        assert 32 < pairs["degree 2"] < 55  # 44 independent features
        assert pairs["MLP"] > 4 * pairs["matrix"]
        # least squares bounds what training can reach, and training comes near
        for row in common.select(quick("capacity"), training="converged"):
            bound = common.select(
                quick("capacity"),
                **{**{k: row[k] for k in ("model", "pairs", "seed")}, "training": "least squares"},
            )
            for best in bound:
                assert row["error"] > best["error"] - 1e-3

    def test_a_window_beats_the_delta_rule_on_tokens_that_are_alike(self, quick):
        rows = common.best(quick("omega_vs_delta"), ["c"], ["eta"], "error")
        assert mean(rows, "error", c=16) < 0.6 * mean(rows, "error", c=1) < 0.6

    def test_muon_learns_rare_directions(self, quick):
        rows = quick("muon_vs_gd")
        rare = {
            rule: min(r["rare"] for r in common.select(rows, rule=rule, token=512))
            for rule in ("Muon", "gradient descent")
        }
        assert rare["Muon"] < 0.2 * rare["gradient descent"]
        assert rare["gradient descent"] < 0.6

    def test_decay_rescues_the_hebbian_rule_and_costs_the_delta_rule(self, quick):
        summary = {
            (row["rule"], row["alpha"]): row for row in experiment("forgetting").summary(quick("forgetting"))
        }
        assert summary["Hebbian", 0.97]["from 256 after"] > 0.2 + summary["Hebbian", 1.0]["from 256 after"]
        assert (
            summary["Delta rule", 1.0]["from 256 after"] > 0.1 + summary["Delta rule", 0.97]["from 256 after"]
        )
        assert summary["Hebbian", 1.0]["before the switch"] > 0.8
        assert summary["Delta rule", 1.0]["age below 32"] > 0.3 + summary["Delta rule", 1.0]["age from 128"]

    def test_omega_net_recalls_more_pairs_than_the_delta_rule_and_less_than_attention(self, quick):
        at = {
            n: mean(quick("mqar"), "accuracy", memory=n, part="pairs", pairs=32)
            for n in common.distinct(quick("mqar"), "memory")
        }
        assert at["attention"] == 1.0
        assert at["omega_net"] > 0.9
        for other in ("delta_rule", "titans", "omega_net, 1/i!"):
            assert at[other] < at["omega_net"] - 0.1

    @pytest.mark.parametrize("name", NAMES)
    def test_every_experiment_has_a_summary_and_a_figure(self, quick, name, tmp_path):
        module, rows = experiment(name), quick(name)
        assert len({tuple(row) for row in rows}) == 1
        assert module.summary(rows)
        pytest.importorskip("matplotlib")
        runner.save(module.figure(rows), tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 5_000

    def test_rows_do_not_depend_on_which_seeds_run_together(self, quick):
        module = experiment("forgetting")
        alone = module.run(seeds=(1,), quick=True)
        together = common.select(quick("forgetting"), seed=1)
        assert [row["accuracy"] for row in alone] == [row["accuracy"] for row in together]


@pytest.mark.slow
def test_the_runner_writes_what_it_says(tmp_path, capsys):
    assert runner.main(["forgetting", "--quick", "--out", str(tmp_path)]) == 0
    assert re.match(r"forgetting: \d+ rows in \d+ s", capsys.readouterr().out)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "forgetting.csv",
        "forgetting.json",
        "forgetting.png",
    ]
    assert json.loads((tmp_path / "forgetting.json").read_text(encoding="utf-8"))["quick"] is True
    with pytest.raises(SystemExit):
        runner.main(["nothing"])


def test_examples_computed_by_hand():
    assert doctest.testmod(common).failed == 0


@pytest.mark.parametrize("name", NAMES)
class TestCommittedResults:
    def test_they_are_whole(self, name):
        document = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        assert document["quick"] is False
        assert document["seconds"] > 0
        assert {"seeds", "date", "versions", "machine", "claim", "question"} <= set(document)
        assert "/" not in document["machine"]
        for suffix in ("csv", "json", "png"):
            assert 500 < (RESULTS / f"{name}.{suffix}").stat().st_size < 150_000

    def test_the_summary_is_that_of_the_rows(self, name):
        document = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        rows = common.load(name)
        assert sorted({row["seed"] for row in rows}) == document["seeds"]
        with (RESULTS / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
            assert len(list(csv.reader(stream))) == len(rows) + 1
        for old, new in zip(document["summary"], experiment(name).summary(rows), strict=True):
            assert list(old) == list(new)
            for key, value in old.items():
                if isinstance(value, float):
                    assert new[key] == pytest.approx(value, rel=0.01, abs=0.0051)
                else:
                    assert new[key] == value

    def test_the_page_shows_the_figure_and_these_numbers(self, name):
        page = PAGE.read_text(encoding="utf-8")
        assert runner.with_tables(page, RESULTS) == page
        section = next(part for part in page.split("\n## ") if f"<!-- table {name} -->" in part)
        assert f"(results/{name}.png)" in section
        prose, table = section.split(f"<!-- table {name} -->")
        numbers = re.findall(r"(?<![\d.,])\d+\.\d+(?!\d)", prose)
        assert len(numbers) > 4
        for number in numbers:
            assert re.search(rf"\| {re.escape(number)} \|", table), f"{number} is not in the table of {name}"
