"""Ranks: the published ones, and ties."""

import numpy as np
import pytest

import metajax as mj
from metajax.analysis.ranks import mean_ranks
from metajax.core.evaluator import Scores, Statistics

# Accuracy and 95 % interval, in percent, of k-NN, Finetune, MatchingNet, ProtoNet, fo-MAML, RelationNet and
# fo-Proto-MAML, trained on all of Meta-Dataset (arXiv 1903.03096; the table of its repository in 2020), on ILSVRC,
# Omniglot, Aircraft, Birds, Textures, Quick Draw, Fungi, VGG Flower, Traffic signs and MSCOCO.
PUBLISHED = """
38.55 0.94 43.08 1.08 36.08 1.00 44.50 1.05 32.36 1.02 30.89 0.93 47.85 1.08
74.60 1.08 71.11 1.37 78.25 1.01 79.56 1.12 71.91 1.20 86.57 0.79 82.86 0.94
64.98 0.82 72.03 1.07 69.17 0.96 71.14 0.86 52.76 0.90 69.71 0.83 74.24 0.77
66.35 0.92 59.82 1.15 56.40 1.00 67.01 1.02 47.24 1.14 54.14 0.99 69.97 0.95
63.58 0.79 69.14 0.85 61.80 0.74 65.18 0.84 56.66 0.74 56.56 0.73 67.94 0.82
44.88 1.05 47.05 1.16 60.81 1.03 64.88 0.89 50.50 1.19 61.75 0.97 66.57 0.90
37.12 1.06 38.16 1.04 33.70 1.04 40.26 1.13 21.02 0.99 32.56 1.08 41.99 1.12
83.47 0.61 85.28 0.69 81.90 0.72 86.85 0.71 70.93 0.99 76.08 0.76 88.45 0.67
40.11 1.10 66.74 1.23 55.57 1.08 46.48 1.00 34.18 1.26 37.48 0.93 52.32 1.08
29.55 0.96 35.17 1.08 28.79 0.96 39.87 1.06 24.05 1.10 27.41 0.89 41.29 1.03
"""
AVERAGE = [4.6, 3.3, 4.5, 2.5, 6.5, 5.2, 1.4]


def report(values, metric="accuracy"):
    """`values` is one (mean, interval) for each domain."""
    domains = {
        f"domain {i}": mj.Report(9, 1, Scores(0, {metric: Statistics([None, mean], [None, half], [None, mean])}))
        for i, (mean, half) in enumerate(values)
    }
    return mj.Report(9, 1, Scores(0, {}), domains=domains)


def test_without_ties_they_are_the_published_ones():
    table = np.array(PUBLISHED.split(), float).reshape(10, 7, 2)
    reports = {f"learner {i}": report(table[:, i].tolist()) for i in range(7)}
    ranks = mean_ranks(reports, ties=False)
    np.testing.assert_allclose([ranks[name].mean for name in reports], AVERAGE, atol=1e-9)


def test_ties_share_the_mean_of_their_ranks():
    """Differences of 3 and 5 with intervals ±3 and ±4, so of ±5."""
    ranks = mean_ranks(
        {"a": report([(50, 3)]), "b": report([(45, 4)]), "c": report([(44.9, 4)]), "d": report([(9, 4)])}
    )
    assert {name: each.mean for name, each in ranks.items()} == {"a": 1.5, "b": 1.5, "c": 3.0, "d": 4.0}


def test_a_tie_is_with_the_best_and_no_chain():
    ranks = mean_ranks({"a": report([(10, 1)]), "b": report([(9, 1)]), "c": report([(8, 1)])})
    assert [ranks[name].mean for name in "abc"] == [1.5, 1.5, 3.0]


def test_of_losses_the_smallest_is_best_and_what_diverged_is_last():
    reports = {"a": report([(2, 0.1)], "loss"), "b": report([(1, 0.1)], "loss"), "c": report([(None, None)], "loss")}
    assert [each.mean for each in mean_ranks(reports, metric="loss").values()] == [2, 1, 3]


def test_reports_by_other_domains_are_named():
    with pytest.raises(ValueError, match="the report of b must have the domains"):
        mean_ranks({"a": report([(1, 1), (1, 1)]), "b": report([(1, 1)])})
    with pytest.raises(ValueError, match="has none"):
        mean_ranks({"a": report([])})
