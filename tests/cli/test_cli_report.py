"""What commands say of a device's errors."""

import jax
import pytest

from metajax.cli import progress, report
from metajax.core.evaluator import Report, Scores, Statistics
from metajax.errors import UserError
from metajax.report import plots


def test_memory_that_does_not_do_is_a_line_with_advice():
    message = r"out of memory \(RESOURCE_EXHAUSTED: 9 GiB\): try a smaller --chunk-size"
    with pytest.raises(UserError, match=message), report.out_of_memory("a smaller --chunk-size"):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GiB\nand more")
    with pytest.raises(jax.errors.JaxRuntimeError), report.out_of_memory("nothing"):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")


def test_without_a_terminal_progress_is_a_line_from_time_to_time(monkeypatch, capsys):
    monkeypatch.delenv("FORCE_COLOR", raising=False)  # by which rich would see a terminal
    row = {"tasks_per_second": 1234.0, "loss": 0.5, "accuracy": 0.25}
    with progress.Progress(3_000) as shown:
        shown.update({"step": 1_000, **row})  # at once: not yet
        monkeypatch.setattr(progress, "_SECONDS", 0.0)
        shown.update({"step": 2_000, **row})
        monkeypatch.setattr(progress, "_SECONDS", 1e9)
        shown.update({"step": 2_500, **row})
        shown.update({"step": 3_000, **row})  # the end
    said = "".join(f"step {n} of 3,000: 1,234 tasks/s, loss 0.5000, accuracy 25.00%\n" for n in ("2,000", "3,000"))
    assert capsys.readouterr() == ("", said)


def test_a_short_training_without_a_terminal_says_nothing(monkeypatch, capsys):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with progress.Progress(2) as shown:
        shown.update({"step": 2, "tasks_per_second": 9.0, "loss": 0.5})
    assert capsys.readouterr() == ("", "")


def test_the_rate_of_the_first_call_is_not_shown(monkeypatch, capsys):
    """It includes the compilation."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    with progress.Progress(3_000) as shown:
        shown.update({"step": 25, "tasks_per_second": 0.4, "loss": 0.5})
        shown.update({"step": 50, "tasks_per_second": 0.4321, "loss": 0.5})
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["step 25 of 3,000: loss 0.5000", "step 50 of 3,000: 0.43 tasks/s, loss 0.5000"]


def test_names_of_metrics_and_domains_are_no_markup(capsys, tmp_path):
    def evaluated(name, **more):
        scores = Scores(0, {name: Statistics([1.0, 0.5], [0.1, 0.1], [1.0, 0.5])})
        return Report(2, 1, scores, split="test", **more)

    report.table(evaluated("[red]a[/b]", domains={"[/x]": evaluated("[red]a[/b]")}))
    said = capsys.readouterr().out
    assert "[red]a[/b]" in said
    assert "[/x]" in said
    plots.save(plots.adaptation(evaluated("$\\bad$")), tmp_path / "a.png")


def test_control_characters_are_escaped(capsys):
    report.say("a\x1b]0;b\x9b\ttab\nline")
    assert capsys.readouterr().out == "a\\x1b]0;b\\x9b\ttab\nline\n"
