"""`metajax train`: meta-train an experiment, or resume it, then evaluate it."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from metajax.cli import configs, report, tune
from metajax.cli.parse import DescribedDefault, value_of
from metajax.cli.progress import Progress
from metajax.errors import UserError
from metajax.experiment import rendezvous, workdir
from metajax.experiment.devices import check_devices, join, prepare_devices
from metajax.experiment.run import run as run_experiment

_USAGE = """usage: metajax train CONFIG [--ARGUMENT VALUE ...] [--FIELD VALUE ...] [--workdir DIR] [--devices N]

Meta-train CONFIG, a name from `metajax configs` or the path of a config file, and evaluate the result. If the work
directory exists, resume its run exactly. A config may have arguments, such as --learner and --ways: `metajax configs
CONFIG` describes them. Every field can be overridden: `metajax train CONFIG --help` lists the fields. A config file is
executed; code in a work directory is not."""


@dataclasses.dataclass
class Options:
    """Meta-train an experiment, or resume it, then evaluate it."""

    workdir: DescribedDefault[Path | None] = None
    """Work directory (default: runs/CONFIG, with the arguments of the config that differ from their defaults)."""
    devices: DescribedDefault[int | None] = None
    """Number of devices to split tasks over (default: as many as speed up training). On a CPU each core is a device."""
    distributed: str | None = None
    """Train in several processes: auto if a cluster manager starts them, else ADDRESS:PORT,INDEX,COUNT, with the
    address of process 0, the index of this process from 0, and the number of processes."""
    data_dir: DescribedDefault[Path | None] = None
    """Folder of prepared data sets (default: $METAJAX_DATA_DIR, else ~/.cache/metajax)."""


def run(args: Sequence[str]) -> None:
    """Run `metajax train` with the arguments `args`."""
    configs.check_first("train", _USAGE, args)
    join(value_of("--distributed", args))  # before the config file is executed, because it may use JAX
    source, name, options, experiment = configs.override("train", Options, args)
    directory = options.workdir or Path("runs") / name
    prepare_devices(options.devices)
    if not rendezvous.joined():  # JAX looks for devices in all processes at once, after they have compared settings
        check_devices()
    tuned = tune.load(source, name)
    with _explained_errors(directory), Progress(experiment.training.steps) as progress:
        result = run_experiment(
            tuned.apply(experiment),
            directory,
            callbacks=[progress.update],
            source=source,
            devices=options.devices or tuned.devices,
            data_dir=options.data_dir,
        )
    report.table(result)
    report.say(f"the whole report is {directory / workdir.EVALUATION}")
    report.say(f"metajax plot {directory} draws it")


@contextlib.contextmanager
def _explained_errors(directory: Path) -> Iterator[None]:
    """Add the work directory to errors of the operating system, and convert errors of JAX into a `UserError`."""
    try:
        with report.out_of_memory("--execution.chunk-size 1, or --execution.remat"):
            yield
    except OSError as error:  # the error of a failed write has no file name
        reason = error.strerror or str(error)
        raise OSError(error.errno or 0, reason, error.filename or str(directory)) from error
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise UserError(
            f"another process of the run has stopped ({report.first_line(error)}). Start all processes again with "
            f"the same command to resume {directory}"
        ) from error
