"""Ranks of learners over domains, from the reports of `metajax evaluate`."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from metajax.core.evaluator import Evaluation


class Ranks(NamedTuple):
    """The ranks of one learner among several.

    Attributes:
        mean: Mean of the ranks over domains; 1 is the best.
        domains: Rank on each domain, by the domain's name.
    """

    mean: float
    domains: dict[str, float]


def mean_ranks(
    reports: Mapping[str, Evaluation],
    *,
    kind: str = "transductive",
    metric: str = "accuracy",
    step: int = -1,
    ties: bool = True,
) -> dict[str, Ranks]:
    r"""Rank learners on each domain, the best first, and average over domains.

    With `ties`, the best learner of a domain ties with each learner whose difference from it is within the 95 %
    interval of the difference, :math:`\sqrt{a^2 + b^2}` for intervals :math:`\pm a` and :math:`\pm b`. Tied learners
    receive the mean of their ranks. The remaining learners are ranked in the same way.

    Args:
        reports: The report of `metajax evaluate` for each learner, on tasks from several domains. Its field `domains`
            has a report for each domain.
        kind: `transductive` or `non_transductive`.
        metric: Larger is better, except for `loss`.
        step: Index of the inner step. Default: the last step.
        ties: Whether differences within the interval are ties. In Meta-Dataset's own tables of 2020 they are not.

    Returns:
        The ranks of each learner.

    Raises:
        ValueError: If a report has no domains, or if the domains differ between reports.

    References:
        Triantafillou et al., `Meta-Dataset <https://arxiv.org/abs/1903.03096>`_, 2020.

    >>> def report(a, b):
    ...     domain = lambda mean: {"transductive": {"accuracy": {"mean": [mean], "ci95": [0.01]}}}
    ...     return {"domains": {"a": domain(a), "b": domain(b)}}
    >>> ranks = mean_ranks({"x": report(0.9, 0.8), "y": report(0.5, 0.805), "z": report(0.4, 0.1)})
    >>> ranks["x"], ranks["y"].mean
    (Ranks(mean=1.25, domains={'a': 1.0, 'b': 1.5}), 1.75)
    """
    domains = list(next(iter(reports.values()), {}).get("domains", {}))
    for learner, report in reports.items():
        if not domains or set(report.get("domains", {})) != set(domains):
            actual = ", ".join(report.get("domains", {})) or "none"
            raise ValueError(f"the report of {learner} must have the domains {domains or '…'}, but has {actual}")
    by_domain = {}
    for domain in domains:
        measured = {learner: report["domains"][domain][kind][metric] for learner, report in reports.items()}
        by_domain[domain] = _ranks({name: _value(each, metric, step) for name, each in measured.items()}, ties)
    return {
        learner: Ranks(
            sum(ranks[learner] for ranks in by_domain.values()) / len(domains),
            {domain: ranks[learner] for domain, ranks in by_domain.items()},
        )
        for learner in reports
    }


def _value(measured: Mapping[str, Any], metric: str, step: int) -> tuple[float, float]:
    """Return a mean, with larger values better, and half of its interval. A diverged mean is the worst."""
    mean, half = measured["mean"][step], measured["ci95"][step]
    worst = mean is None
    return (-math.inf if worst else -mean if metric == "loss" else mean), (0.0 if worst or half is None else half)


def _ranks(values: Mapping[str, tuple[float, float]], ties: bool) -> dict[str, float]:
    left = sorted(values, key=lambda name: values[name][0], reverse=True)
    ranks: dict[str, float] = {}
    while left:
        best, half = values[left[0]]
        level = [
            name
            for name in left
            if values[name][0] == best or (ties and best - values[name][0] <= math.hypot(half, values[name][1]))
        ]
        ranks |= dict.fromkeys(level, len(ranks) + (len(level) + 1) / 2)
        left = [name for name in left if name not in level]
    return ranks
