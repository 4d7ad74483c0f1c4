"""The settings of an experiment, each with its meaning, its unit and its check."""

import dataclasses
from typing import Literal, Protocol, runtime_checkable

import optax

from metajax.errors import UserError
from metajax.experiment.checks import LARGEST, MOST_EXAMPLES, MOST_TASKS, in_range, positive, shown, whole
from metajax.experiment.models import ModelSpec
from metajax.experiment.tasks import TaskSpec
from metajax.inner import InnerLoop, inner_loop
from metajax.learners import Ingredients, MetaLearner
from metajax.partition import named, opposite

_MOST_STEPS = 100_000
"""Inner steps."""

_MOST_UNROLLED = 200
"""Inner steps in a compiled program without a loop."""

_MOST_MEASURED = 100_000_000
"""Tasks times inner steps of an evaluation: all their metrics are kept in the host's memory."""


@runtime_checkable
class LearnerSpec(Protocol):
    """A meta-learner as settings; each learner's file has its own."""

    def build(self, given: Ingredients) -> MetaLearner:
        """Make the learner."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    """Adaptation to one task."""

    learning_rate: float
    """Rate of the inner optimiser, for a loss that is a mean over examples. (MAML's code sums over ways and divides by
    shots: its rate times the number of ways is the same here.)"""
    steps: int = 1
    """Gradient steps in training; with 0 MAML is joint training, fine-tuned in evaluation."""
    optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    """The inner optimiser."""
    beta1: float = 0.9
    """Decay of the momentum, or of Adam's first moment; Reptile sets 0."""
    beta2: float = 0.999
    """Decay of Adam's second moment."""
    batch_size: int | None = None
    """Support examples in each step; None for all of them."""
    first_order: bool = False
    """Treat inner gradients as constants: first-order MAML."""
    frozen: tuple[str, ...] = ()
    """Names of parameters that do not adapt in the inner loop, such as "norms", "head" or "layers/0"."""

    def __post_init__(self):
        positive("inner", learning_rate=self.learning_rate)
        whole("inner", 0, _MOST_STEPS, steps=self.steps)
        whole("inner", 1, MOST_EXAMPLES * MOST_EXAMPLES, batch_size=self.batch_size)
        in_range("inner", 0, 0.999999, beta1=self.beta1, beta2=self.beta2)

    def build(self, execution: "Execution") -> InnerLoop:
        """Make the inner loop."""
        # eps_root keeps the derivative of Adam's square root finite where a gradient is exactly 0.
        optimizer = {
            "sgd": lambda: optax.sgd(self.learning_rate),
            "momentum": lambda: optax.sgd(self.learning_rate, momentum=self.beta1),
            "adam": lambda: optax.adam(self.learning_rate, b1=self.beta1, b2=self.beta2, eps_root=1e-16),
        }[self.optimizer]()
        return inner_loop(
            optimizer,
            self.steps,
            adapts=opposite(named(*self.frozen)) if self.frozen else None,
            batch_size=self.batch_size,
            first_order=self.first_order,
            mixed_mode=execution.mixed_mode,
            remat=execution.remat,
            # of training's loop: evaluation may take many more steps
            unroll=None if execution.unroll is None else self.steps if execution.unroll else 1,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    """The optimiser of the meta-parameters."""

    learning_rate: float
    """Peak rate."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """The outer optimiser; Reptile's own is SGD."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate falls from its peak over the training."""
    final_fraction: float = 0.0
    """The last rate of a schedule, as a fraction of the peak."""
    clip_norm: float | None = None
    """Clip the meta-gradient to this global norm."""
    clip_value: float | None = None
    """Clip each element of the meta-gradient to ± this."""

    def __post_init__(self):
        positive("outer", learning_rate=self.learning_rate, clip_norm=self.clip_norm, clip_value=self.clip_value)
        in_range("outer", 0, 1, final_fraction=self.final_fraction)

    def build(self, steps: int) -> optax.GradientTransformation:
        """Make the optimiser, its schedule stretched over `steps`."""
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
        return optax.chain(*clips, {"adam": optax.adam, "sgd": optax.sgd}[self.optimizer](rate))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How long to meta-train, and how."""

    steps: int
    """Meta-steps."""
    tasks_per_step: int
    """Tasks averaged in a meta-step (the meta-batch)."""
    steps_per_call: int = 25
    """Meta-steps compiled into one call: metrics, progress and interrupts come once a call."""
    checkpoint_every: int = 1000
    """Meta-steps between checkpoints."""
    keep: int = 3
    """Checkpoints kept, besides the best."""

    def __post_init__(self):
        whole("training", 1, LARGEST, steps=self.steps, checkpoint_every=self.checkpoint_every, keep=self.keep)
        whole("training", 1, MOST_TASKS, tasks_per_step=self.tasks_per_step, steps_per_call=self.steps_per_call)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validation:
    """What is measured at each checkpoint, and chooses the best one by the lowest loss."""

    num_tasks: int = 100
    """Validation tasks, the same each time; 0 for none."""

    def __post_init__(self):
        whole("validation", 0, MOST_TASKS, num_tasks=self.num_tasks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How the trained learner is evaluated."""

    steps: int
    """Inner steps; every one from 0 on is reported."""
    num_tasks: int = 600
    """Test tasks."""
    batch_size: int | None = None
    """Support examples in each inner step; None as in training, or all if the support set is smaller."""
    checkpoint: Literal["last", "best"] = "last"
    """Evaluate the end of training, or the checkpoint with the lowest validation loss."""
    non_transductive: bool = True
    """Also predict each query alone with the support set."""

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
    """How a run is carried out: its speed and memory; what comes out is the same up to rounding."""

    chunk_size: int | None = None
    """Tasks that run together on a device; None chooses by device and model."""
    unroll: bool | None = None
    """Unroll the inner steps in the compiled program, which compiles longer; None does so up to 5 of them."""
    mixed_mode: bool | None = None
    """Differentiate inner gradients by forward-over-reverse products, which store far less than plain reverse mode;
    None does so from 10,000 adapting parameters on."""
    remat: bool = False
    """Keep only inner gradients and a state every √steps steps for the backward pass: the least memory, more time."""
    precision: Literal["default", "bfloat16", "tensorfloat32", "float32"] = "default"
    """Of the operands of products, summed in float32. The default is JAX's own for the device, but bfloat16 on a CPU
    that multiplies it (AMX, AVX-512), where it rounds operands of convolutions only: up to 2.2 times as fast on
    Omniglot and as accurate there; with few channels (mini-ImageNet's model on AVX-512) 0.9 to 1.4 times, by the
    hour."""

    def __post_init__(self):
        whole("execution", 1, MOST_TASKS, chunk_size=self.chunk_size)
        if self.remat and self.unroll:
            raise UserError("execution.remat and execution.unroll do not go together: choose one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A meta-learning experiment, whole: with its seed it determines the run."""

    task: TaskSpec
    model: ModelSpec
    learner: LearnerSpec
    inner: Inner
    outer: Outer
    training: TrainingSettings
    validation: Validation = Validation()
    evaluation: EvaluationSettings
    execution: Execution = Execution()
    seed: int = 0
    """Seed of the initial values, of the tasks, of all."""

    def __post_init__(self):
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed must be a whole number from 0 to 2³² − 1, got {shown(self.seed)}")
        if self.execution.unroll and self.inner.steps > _MOST_UNROLLED:
            raise UserError(
                f"execution.unroll is for at most {_MOST_UNROLLED} inner steps, which compile for minutes; inner.steps "
                f"is {self.inner.steps}"
            )
