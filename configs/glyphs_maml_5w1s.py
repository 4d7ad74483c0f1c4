"""MAML on glyphs, characters invented on the device, 5-way 1-shot; needs no download.

    metajax train glyphs_maml_5w1s

As `omniglot_maml_5w1s`, but with 3,000 meta-steps on generated characters. Every task has new characters.

Measured on two cores (2 CPU devices), seed 0, 600 test tasks of 15 queries per class, after 3 steps: 97.98 ± 0.25 %
transductive, 97.18 ± 0.31 % non-transductive; 13.3 minutes of training. The trained initialisation, evaluated on
Omniglot without training on it (`metajax evaluate runs/glyphs_maml_5w1s --on omniglot_maml_5w1s`): 90.07 ± 0.54 %
transductive, 87.32 ± 0.64 % non-transductive.
"""

from metajax.experiment import *

config = Experiment(
    task=GlyphsConfig(ways=5, train=Shots(shots=1, queries=1), test=Shots(shots=1, queries=15)),
    model=Conv4Config(),
    learner=MAMLConfig(),
    inner=Inner(learning_rate=2.0, steps=1, frozen=("norms",)),
    outer=Outer(learning_rate=2e-3, schedule="cosine", final_fraction=0.01),
    training=TrainingSettings(steps=3_000, tasks_per_step=32),
    evaluation=EvaluationSettings(steps=3),
)
