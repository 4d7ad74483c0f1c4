"""The settings of an experiment, with the meaning, unit and check of each setting."""

import dataclasses
from typing import Literal

import jax
import optax

from metajax.core.inner_loop import InnerLoop, inner_loop
from metajax.core.trees import invert, named
from metajax.errors import UserError
from metajax.experiment.optimizers import make_optimizer
from metajax.learners.config import LearnerConfig
from metajax.limits import LARGEST, MOST_EXAMPLES, MOST_TASKS, in_range, positive, shown, whole
from metajax.models.config import ModelConfig
from metajax.tasks.config import TaskConfig

_MOST_STEPS = 100_000
"""Upper limit of the number of inner steps."""

_MOST_UNROLLED = 200
"""Largest number of inner steps that may be unrolled."""

_MOST_MEASURED = 100_000_000
"""Largest product of tasks and inner steps of an evaluation, because the host keeps all metrics in memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    """Settings of the inner loop, the adaptation to one task."""

    learning_rate: float
    """Learning rate of the inner optimiser, for a loss that is a mean over examples. In the code of MAML's authors the
    loss is a sum over ways and a mean over shots, so multiply a rate from that code by the number of ways."""
    steps: int = 1
    """Gradient steps in training. With 0 steps MAML is joint training, and evaluation fine-tunes the model."""
    optimizer: str = "sgd"
    """The inner optimiser, by its name in optax: sgd, adam, rmsprop and others."""
    options: dict[str, bool | int | float] = dataclasses.field(default_factory=dict)
    """Other arguments of the optimiser, by their names in optax, such as momentum of sgd. On the command line
    --inner.options.NAME VALUE sets one of them."""
    batch_size: int | None = None
    """Number of support examples in each inner step; None for the whole support set."""
    first_order: bool = False
    """Treat inner gradients as constants in the meta-gradient: first-order MAML."""
    frozen: tuple[str, ...] = ()
    """Names of parameters that do not adapt in the inner loop, such as "norms", "head" or "layers/0"."""

    def __post_init__(self):
        positive("inner", learning_rate=self.learning_rate)
        whole("inner", 0, _MOST_STEPS, steps=self.steps)
        whole("inner", 1, MOST_EXAMPLES * MOST_EXAMPLES, batch_size=self.batch_size)
        make_optimizer("inner", self.optimizer, self.learning_rate, self.options)

    def build(self, execution: "Execution") -> InnerLoop:
        """Make the inner loop."""
        return inner_loop(
            make_optimizer("inner", self.optimizer, self.learning_rate, self.options),
            self.steps,
            adapts=invert(named(*self.frozen)) if self.frozen else None,
            batch_size=self.batch_size,
            first_order=self.first_order,
            mixed_mode=execution.mixed_mode,
            remat=execution.remat,
            # The number of steps in training decides, because evaluation may take many more steps.
            unroll=None if execution.unroll is None else self.steps if execution.unroll else 1,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    """Settings of the outer optimiser, which updates the meta-parameters."""

    learning_rate: float
    """Peak learning rate."""
    optimizer: str = "adam"
    """The outer optimiser, by its name in optax: adam, sgd, adamw and others. Reptile's paper uses SGD."""
    options: dict[str, bool | int | float] = dataclasses.field(default_factory=dict)
    """Other arguments of the optimiser, by their names in optax, such as weight_decay of adamw. On the command line
    --outer.options.NAME VALUE sets one of them."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Schedule of the learning rate, from its peak at the start of training to its final value."""
    final_fraction: float = 0.0
    """Learning rate at the end of a linear or cosine schedule, as a fraction of the peak learning rate."""
    clip_norm: float | None = None
    """Clip the meta-gradient to this global norm; None for no clipping."""
    clip_value: float | None = None
    """Clip each element of the meta-gradient to this absolute value; None for no clipping."""

    def __post_init__(self):
        positive("outer", learning_rate=self.learning_rate, clip_norm=self.clip_norm, clip_value=self.clip_value)
        in_range("outer", 0, 1, final_fraction=self.final_fraction)
        make_optimizer("outer", self.optimizer, self.learning_rate, self.options)

    def build(self, steps: int) -> optax.GradientTransformation:
        """Make the outer optimiser, whose schedule takes `steps` meta-steps."""
        peak, last = self.learning_rate, self.learning_rate * self.final_fraction
        rate = {
            "constant": lambda: optax.constant_schedule(peak),
            "linear": lambda: optax.linear_schedule(peak, last, steps),
            "cosine": lambda: optax.cosine_decay_schedule(peak, steps, self.final_fraction),
        }[self.schedule]()
        clips = [
            *([optax.clip(self.clip_value)] if self.clip_value else []),
            *([optax.clip_by_global_norm(self.clip_norm)] if self.clip_norm else []),
        ]
        optimizer = optax.chain(*clips, make_optimizer("outer", self.optimizer, rate, self.options))
        try:
            like = {"w": jax.ShapeDtypeStruct((2, 2), "float32")}
            jax.eval_shape(optimizer.update, like, jax.eval_shape(optimizer.init, like), like)
        except (TypeError, ValueError, AttributeError) as error:  # for example an optimiser that takes no schedule
            raise UserError(f"outer.optimizer: {self.optimizer} does not work with these settings: {error}") from error
        return optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings of meta-training."""

    steps: int
    """Total number of meta-steps."""
    tasks_per_step: int
    """Number of tasks in a meta-step (the meta-batch), over which the meta-gradient is averaged."""
    steps_per_call: int = 25
    """Number of meta-steps in one call of the compiled training step. Metrics, progress and interrupts are handled once
    per call."""
    checkpoint_every: int = 1000
    """Number of meta-steps between two checkpoints."""
    keep: int = 3
    """Number of most recent checkpoints to keep, in addition to the best checkpoint."""

    def __post_init__(self):
        whole("training", 1, LARGEST, steps=self.steps, checkpoint_every=self.checkpoint_every, keep=self.keep)
        whole("training", 1, MOST_TASKS, tasks_per_step=self.tasks_per_step, steps_per_call=self.steps_per_call)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validation:
    """Settings of the validation at each checkpoint. The best checkpoint has the lowest validation loss."""

    num_tasks: int = 100
    """Number of validation tasks; 0 for no validation. All checkpoints use the same tasks."""

    def __post_init__(self):
        whole("validation", 0, MOST_TASKS, num_tasks=self.num_tasks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Settings of the evaluation of the trained learner."""

    steps: int
    """Number of inner steps. The report has the metrics after every inner step, from step 0."""
    num_tasks: int = 600
    """Number of test tasks."""
    batch_size: int | None = None
    """Support examples in each inner step of evaluation; None for inner.batch_size, or for the whole support set if the
    support set is smaller."""
    checkpoint: Literal["last", "best"] = "last"
    """Evaluate the last checkpoint, or the checkpoint with the lowest validation loss."""
    non_transductive: bool = True
    """Also evaluate non-transductively: predict each query in a batch with only the support set."""

    def __post_init__(self):
        whole("evaluation", 1, MOST_TASKS, num_tasks=self.num_tasks)
        whole("evaluation", 1, MOST_EXAMPLES * MOST_EXAMPLES, batch_size=self.batch_size)
        whole("evaluation", 0, _MOST_STEPS, steps=self.steps)
        if self.num_tasks * (self.steps + 1) > _MOST_MEASURED:
            raise UserError(
                f"evaluation.num_tasks times evaluation.steps must be at most {_MOST_MEASURED:,}, got "
                f"{self.num_tasks:,} times {self.steps:,}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """Settings of execution, which change speed and memory. They change results only by rounding."""

    chunk_size: int | None = None
    """Number of tasks that run together on a device; None chooses the number from the device and the model's size."""
    unroll: bool | None = None
    """Unroll the inner steps in the compiled program, which takes longer to compile; None unrolls up to 5 steps."""
    mixed_mode: bool | None = None
    """Differentiate inner gradients by forward-over-reverse Hessian-vector products, which store far less than plain
    reverse mode; None uses them from 10,000 adapting parameters on."""
    remat: bool = False
    """For the backward pass, store only the inner gradients and the inner loop's state after every √steps steps, and
    recompute all other values. This needs the least memory, but more time."""
    precision: Literal["default", "bfloat16", "tensorfloat32", "float32"] = "default"
    """Precision of the operands of matrix products; sums are in float32. The default is JAX's default for the device,
    except on a CPU with bfloat16 instructions (AMX, AVX-512): there the operands of convolutions, and only these, are
    rounded to bfloat16. On Omniglot this is up to 2.2 times as fast, with the same accuracy. With few channels
    (mini-ImageNet's model on AVX-512) the speed-up varies between 0.9 and 1.4 from measurement to measurement."""

    def __post_init__(self):
        whole("execution", 1, MOST_TASKS, chunk_size=self.chunk_size)
        if self.remat and self.unroll:
            raise UserError("execution.remat and execution.unroll do not go together: choose one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """The complete settings of a meta-learning experiment, which determine the run, including its random numbers."""

    task: TaskConfig
    model: ModelConfig
    learner: LearnerConfig
    inner: Inner
    outer: Outer
    training: TrainingSettings
    validation: Validation = Validation()
    evaluation: EvaluationSettings
    execution: Execution = Execution()
    seed: int = 0
    """Seed of the initial parameters, the tasks, and all other random numbers."""

    def __post_init__(self):
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed must be a whole number from 0 to 2³² − 1, got {shown(self.seed)}")
        if self.execution.unroll and self.inner.steps > _MOST_UNROLLED:
            raise UserError(
                f"execution.unroll is for at most {_MOST_UNROLLED} inner steps, which compile for minutes; inner.steps "
                f"is {self.inner.steps}"
            )
