"""Glyphs, characters invented on the device: few-shot classification without a download.

    metajax train glyphs                          # MAML, 5-way 1-shot
    metajax train glyphs --learner anil

Every task has new characters. The setting is that of `omniglot` with fewer meta-steps.

Measured on two cores (2 CPU devices), seed 0, 600 test tasks of 15 queries per class, after 3 steps: 97.98 ± 0.25 %
transductive, 97.18 ± 0.31 % non-transductive; 13.3 minutes of training. The trained initialisation, evaluated on
Omniglot without training on it (`metajax evaluate runs/glyphs --on omniglot`): 90.07 ± 0.54 % transductive, 87.32 ±
0.64 % non-transductive.
"""

from metajax.experiment import *


def config(
    *,
    learner: Learner = "maml",
    model: ImageModel = "conv4",
    ways: int = 5,
    shots: int = 1,
    length: Length = "medium",
) -> Experiment:
    """Return the experiment.

    Args:
        learner: The meta-learner.
        model: The network.
        ways: Number of classes in a task.
        shots: Number of support examples of each class.
        length: Length of training.
    """
    experiment = Experiment(
        task=GlyphsConfig(ways=ways, train=Shots(shots=shots, queries=shots), test=Shots(shots=shots, queries=15)),
        model=Conv4Config(),
        learner=MAMLConfig(),
        inner=Inner(learning_rate=2.0, steps=1 if ways < 20 else 5, frozen=("norms",)),
        outer=Outer(learning_rate=2e-3, schedule="cosine", final_fraction=0.01),
        training=TrainingSettings(steps={"short": 1_000, "medium": 3_000, "long": 40_000}[length], tasks_per_step=32),
        evaluation=EvaluationSettings(steps=3 if ways < 20 else 5),
    )
    return with_learner(with_model(experiment, model, image_size=28), learner)
