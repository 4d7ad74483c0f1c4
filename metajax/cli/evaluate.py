"""`metajax evaluate`: evaluate a trained learner on unseen tasks, at every inner step."""

import contextlib
import dataclasses
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from metajax.cli import configs, report
from metajax.cli.parse import DescribedDefault, parse, value_of
from metajax.errors import UserError
from metajax.experiment import DomainsConfig, Experiment, TaskConfig, Tasks, build, workdir
from metajax.experiment.devices import check_devices, choose_mesh, prepare_devices, use_precision
from metajax.experiment.protocols import PROTOCOLS
from metajax.experiment.run import describe_task, evaluate_run, load_state, split_of, tasks_of_run
from metajax.system import files


@dataclasses.dataclass
class Options:
    """Evaluate a trained learner at every inner step, and write the report into its work directory.

    With --on CONFIG, the options --task.FIELD VALUE override fields of that config's task.

    A run with types of your own needs the code in its config.py. The code is executed only if you began a run with it,
    or with --trust. A copy of a work directory counts as yours if its config.py is unchanged.
    """

    workdir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="WORKDIR")]
    """Work directory of a run."""
    checkpoint: DescribedDefault[str | None] = None
    """last, best (lowest validation loss), or the step of a kept checkpoint (default: as in the config, usually
    last)."""
    split: Literal["test", "validation", "train"] = "test"
    """Split from which tasks are sampled."""
    num_tasks: DescribedDefault[int | None] = None
    """Number of tasks (default: as in the config, usually 600)."""
    steps: DescribedDefault[int | None] = None
    """Number of inner steps (default: as in the config)."""
    seed: DescribedDefault[int | None] = None
    """Seed of the tasks (default: the seed of the run)."""
    protocol: Annotated[
        Literal["maml", "reptile", "reptile_20_way", "reptile_mini_imagenet_5_shot", "metajax"] | None,
        tyro.conf.arg(metavar="|".join(PROTOCOLS)),
    ] = None
    """Evaluate with the number of tasks, queries and inner steps of a paper; --num-tasks and --steps override these
    numbers."""
    on: str | None = None
    """Evaluate on the tasks of another config, given by its name or the path of its file. The config file is
    executed."""
    output: DescribedDefault[Path | None] = None
    """Path of the report (default: evaluation.json in the work directory). Options that change the evaluation also
    change the default name, for example to evaluation_steps_10.json. A symbolic link is replaced; its target does not
    change."""
    chunk_size: int | None = None
    """Number of tasks that run together on a device; a smaller number needs less memory."""
    devices: DescribedDefault[int | None] = None
    """Number of devices to split tasks over (default: as many as speed up the evaluation)."""
    data_dir: DescribedDefault[Path | None] = None
    """Folder of prepared data sets (default: $METAJAX_DATA_DIR, else ~/.cache/metajax)."""
    trust: bool = False
    """Execute the code in the work directory's config.py even if another user began the run, with imports from the work
    directory. Read the code first."""


def run(args: Sequence[str]) -> None:
    """Run `metajax evaluate` with the arguments `args`."""
    options, task, on = _parse(args)
    report.check_output(options.output)
    prepare_devices(options.devices)
    experiment = workdir.load_experiment(options.workdir, trust=options.trust)
    overridden = task if any(arg.startswith("--task.") for arg in args) else None
    path = options.output or options.workdir / _report_name(options, on, overridden)
    files.check_writable(path)
    warn_of_changed_code(options.workdir, experiment)
    trained = experiment.task
    if task is not None:
        experiment = dataclasses.replace(experiment, task=task)
    if options.protocol is not None:
        experiment = PROTOCOLS[options.protocol].apply(experiment)
    changes = {name: getattr(options, name) for name in ("num_tasks", "steps") if getattr(options, name) is not None}
    experiment = dataclasses.replace(experiment, evaluation=dataclasses.replace(experiment.evaluation, **changes))
    if options.chunk_size is not None:
        execution = dataclasses.replace(experiment.execution, chunk_size=options.chunk_size)
        experiment = dataclasses.replace(experiment, execution=execution)
    check_devices()
    use_precision(experiment.execution.precision)
    if options.on is None:
        tasks = tasks_of_run(options.workdir, experiment, options.data_dir)
    else:
        tasks = experiment.task.tasks(options.data_dir)
    split_of(tasks, options.split)
    tasks = dataclasses.replace(tasks, problems={})  # the other splits are not used
    if options.on is None:
        _warn_of_other_data(options.workdir, tasks)
        parts = build(experiment, options.data_dir, tasks=tasks)
        state, step = load_state(options.workdir, experiment, parts, options.checkpoint)
    else:
        with _misfit_errors(options.on, options.workdir, tasks, task, trained):
            parts = build(experiment, options.data_dir, tasks=tasks)
            state, step = load_state(options.workdir, experiment, parts, options.checkpoint)
    mesh = choose_mesh(options.devices, parts.params, experiment.evaluation.num_tasks)
    report.say(f"evaluating checkpoint {step:,} on {experiment.evaluation.num_tasks:,} {options.split} tasks")
    try:
        with report.out_of_memory("a smaller --chunk-size"):
            result = evaluate_run(experiment, parts, state, mesh, split=options.split, seed=options.seed)
    except UserError as error:
        if options.protocol is None:
            raise
        raise UserError(f"--protocol {options.protocol}, with the ways and shots of the run: {error}") from error
    report.table(result)
    files.write_json(path, {**result.to_json(), "checkpoint": step, **_recorded_options(options, task)})
    report.say(f"the whole report is {path}")


def _parse(args: Sequence[str]) -> tuple[Options, TaskConfig | None, str | None]:
    """Return the options, and for `--on` the task and the name of the config with its arguments, otherwise `None`."""
    on = value_of("--on", args)
    if not on:
        for option in (arg.partition("=")[0] for arg in args if arg.startswith("--task.")):
            raise UserError(
                f"{option} goes with --on CONFIG: without --on the run is evaluated on the tasks of its own settings"
            )
        return parse(Options, args, prog="metajax evaluate"), None, None
    prepare_devices(None)  # before the config file is executed, because it may use JAX
    return configs.override_task(Options(workdir=tyro.MISSING), on, args, prog="metajax evaluate")


def warn_of_changed_code(directory: Path, experiment: Experiment) -> None:
    """Warn if modules that the run's config imports have changed since the run began."""
    changed = workdir.changed_modules(directory, experiment, directory / workdir.SOURCE)
    if changed:
        report.warn(
            f"code of {directory} has changed since the run began: {', '.join(changed)}. "
            "The results are from the new code"
        )


def _warn_of_other_data(directory: Path, tasks: Tasks) -> None:
    """Warn if the data differs from the run's data, or if the run has no record of its data."""
    unknown = workdir.unknown_beginning(directory)
    if unknown:
        report.warn(unknown)
    changed = workdir.data_differs(directory, tasks.fingerprints)
    if changed:
        report.warn(f"{directory} was trained on other data: {changed}. The tasks may contain classes of its training")


@contextlib.contextmanager
def _misfit_errors(on: str, directory: Path, tasks: Tasks, task: Any, trained: TaskConfig) -> Iterator[None]:
    """Convert errors into a `UserError` which says that the tasks of `--on` do not fit the model of a run.

    Args:
        on: The value of `--on`.
        directory: The work directory of the run.
        tasks: The task samplers of `--on`.
        task: The settings of the tasks to evaluate on, which `--on` names.
        trained: The task settings of the run.

    Raises:
        UserError: If the tasks of `--on` have another kind of target than the run's tasks, or if the body of the `with`
            statement raises a `UserError`.
    """
    there, here = workdir.trained_on(directory), describe_task(tasks)
    misfit = f"the tasks of {on} do not fit the model of {directory}"
    ways, needed = _outputs(task), _outputs(trained)
    shapes = f"its tasks have {_described(here, ways)}, the run's have {_described(there, needed)}" if there else ""
    if there and (there.get("targets") == "classes") != (here["targets"] == "classes"):
        raise UserError(f"{misfit}: {shapes}")
    sizes = _size_options(task, here["inputs"], there.get("inputs"))
    try:
        yield
    except UserError as error:
        options = " ".join([*sizes, *_ways_options(task, needed)])
        reason = f"pass {options}" if options else str(error)
        raise UserError(f"{misfit}: {shapes + '; ' if shapes else ''}{reason}") from error
    if there and there.get("inputs") != here["inputs"]:
        advice = f"; {' '.join(sizes)} makes them equal" if sizes else ""
        report.warn(f"{on} is not what {directory} was trained on: {shapes}{advice}")


def _size_options(task: Any, here: Any, there: Any) -> list[str]:
    """Return the options that give a task's images the size and channels of the images in training.

    `here` is the input shape of the task, and `there` the input shape in training.
    """
    if not (isinstance(there, list) and len(there) == len(here) == 3):
        return []
    options = []
    if here[:2] != there[:2] and there[0] == there[1] and hasattr(task, "size"):
        options.append(f"--task.size {there[0]}")
    if here[2] != there[2] and there[2] in (1, 3) and hasattr(task, "channels"):
        options.append(f"--task.channels {there[2]}")
    return options


def _ways_options(task: Any, outputs: int | None) -> list[str]:
    """Return the options that set the ways of a task so that its model has `outputs` outputs."""
    if outputs is None or _outputs(task) in (None, outputs):
        return []
    if isinstance(task, DomainsConfig):
        return [f"--task.max-ways {outputs}"]
    parts = [name for name in ("train", "test") if getattr(getattr(task, name, None), "ways", None)]
    return [f"--task.ways {outputs}", *(f"--task.{name}.ways {outputs}" for name in parts)]


def _outputs(task: Any) -> int | None:
    """Return the number of model outputs that a task needs; `None` if the task's settings have no ways."""
    if isinstance(task, DomainsConfig):
        return task.max_ways
    ways = getattr(task, "ways", None)
    if ways is None:
        return None
    return max(getattr(getattr(task, name, None), "ways", None) or ways for name in ("train", "test"))


def _described(task: dict[str, Any], ways: int | None) -> str:
    """Return the result of `describe_task` as text, such as `inputs of 28×28×1 and 5 classes`."""
    shapes = {k: "×".join(map(str, v)) or "1 number" if isinstance(v, list) else str(v) for k, v in task.items()}
    targets = shapes.get("targets")
    classes = "classes" if ways is None else f"{ways} classes"
    return f"inputs of {shapes.get('inputs')} and {classes if targets == 'classes' else f'targets of {targets}'}"


def _recorded_options(options: Options, task: TaskConfig | None) -> dict[str, Any]:
    """Return what a report records about `--on` and `--protocol`: their values, and the settings of the tasks."""
    recorded: dict[str, Any] = {"on": options.on, "task": workdir.to_json(task)} if options.on else {}
    if options.protocol is not None:
        protocol = PROTOCOLS[options.protocol]
        recorded |= {
            "protocol": options.protocol,
            "source": protocol.source,
            "transductive_is_its_own": protocol.transductive,
        }
    return recorded


def _report_name(options: Options, on: str | None, overridden: TaskConfig | None) -> str:
    """Return the default file name of the report.

    The name is `evaluation.json` only if no option changes the evaluation, so that another evaluation does not
    overwrite this file. If options override the task of `--on`, the name ends in a checksum of the task's settings.
    """
    parts = ["evaluation"] + ([options.split] if options.split != "test" else [])
    for name in ("protocol", "on", "steps", "num_tasks", "seed", "checkpoint"):
        value = getattr(options, name)
        if value is not None:
            parts += [name, str(on if name == "on" else value)]
    if overridden is not None:
        parts.append(f"{zlib.crc32(json.dumps(workdir.to_json(overridden)).encode()):08x}")
    return "_".join(parts) + ".json"
