"""Rank learners by their metrics on several domains, from the reports of their evaluations."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from metajax.core.evaluator import Report, Statistics


class Ranks(NamedTuple):
    """The ranks of one learner among the compared learners.

    Attributes:
        mean: The mean of the ranks over domains; 1 is the best.
        domains: The rank on each domain, by the name of the domain.
    """

    mean: float
    domains: dict[str, float]


def mean_ranks(
    reports: Mapping[str, Report],
    *,
    kind: str = "transductive",
    metric: str = "accuracy",
    step: int = -1,
    ties: bool = True,
) -> dict[str, Ranks]:
    r"""Rank learners on each domain, and average the ranks over domains. Rank 1 is the best.

    With `ties`, the best learner of a domain shares the mean of the ranks with every learner whose difference from it
    is within the 95 % interval of the difference, :math:`\sqrt{a^2 + b^2}` for intervals :math:`\pm a` and
    :math:`\pm b`. Then the same rule ranks the remaining learners.

    Args:
        reports: A report for each learner, on tasks from several domains: `report.domains` has one report for each
            domain. `Report.from_json` makes a report from a file of `metajax evaluate`.
        kind: `transductive` or `non_transductive`.
        metric: Name of the metric. A larger value is better, except for `loss`.
        step: The inner step after which the metric is compared. Default: the last inner step.
        ties: Whether a difference within the interval counts as a tie. Meta-Dataset's tables of 2020 have no ties.

    Returns:
        The ranks of each learner.

    Raises:
        ValueError: If a report has no domains, or if its domains differ from the domains of the first report.

    References:
        Triantafillou et al., `Meta-Dataset <https://arxiv.org/abs/1903.03096>`_, 2020.

    >>> from metajax.core.evaluator import Scores
    >>> def report(a, b):
    ...     domain = lambda mean: mj.Report(9, 0, Scores(0, {"accuracy": Statistics([mean], [0.01], [mean])}))
    ...     return mj.Report(9, 0, domain(a).transductive, domains={"a": domain(a), "b": domain(b)})
    >>> import metajax as mj
    >>> ranks = mean_ranks({"x": report(0.9, 0.8), "y": report(0.5, 0.805), "z": report(0.4, 0.1)})
    >>> ranks["x"], ranks["y"].mean
    (Ranks(mean=1.25, domains={'a': 1.0, 'b': 1.5}), 1.75)
    """
    domains = [name for report in list(reports.values())[:1] for name in report.domains]
    for learner, report in reports.items():
        if not domains or set(report.domains) != set(domains):
            names = ", ".join(report.domains) or "none"
            raise ValueError(f"the report of {learner} must have the domains {domains or '…'}, but has {names}")
    by_domain = {}
    for domain in domains:
        measured = {name: getattr(report.domains[domain], kind)[metric] for name, report in reports.items()}
        by_domain[domain] = _ranks({name: _value(each, metric, step) for name, each in measured.items()}, ties)
    return {
        learner: Ranks(
            sum(ranks[learner] for ranks in by_domain.values()) / len(domains),
            {domain: ranks[learner] for domain, ranks in by_domain.items()},
        )
        for learner in reports
    }


def _value(measured: Statistics, metric: str, step: int) -> tuple[float, float]:
    """Return the mean of a metric and the half-width of its interval, for ranking.

    A larger mean is better: the sign of a loss is reversed, and the mean of a diverged learner is −∞.
    """
    mean, half = measured.mean[step], measured.ci95[step]
    worst = mean is None
    return (-math.inf if worst else -mean if metric == "loss" else mean), (0.0 if worst or half is None else half)


def _ranks(values: Mapping[str, tuple[float, float]], ties: bool) -> dict[str, float]:
    remaining = sorted(values, key=lambda name: values[name][0], reverse=True)
    ranks: dict[str, float] = {}
    while remaining:
        best, half = values[remaining[0]]
        tied = [
            name
            for name in remaining
            if values[name][0] == best or (ties and best - values[name][0] <= math.hypot(half, values[name][1]))
        ]
        ranks |= dict.fromkeys(tied, len(ranks) + (len(tied) + 1) / 2)
        remaining = [name for name in remaining if name not in tied]
    return ranks
