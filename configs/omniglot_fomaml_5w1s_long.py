"""First-order MAML on Omniglot, 5-way 1-shot, for longer.

    metajax data prepare omniglot
    metajax train omniglot_fomaml_5w1s_long

As `omniglot_fomaml_5w1s`, over 60,000 meta-steps, as many as the paper's.

Not measured here: it takes about half an hour on two cores.
"""

from metajax.experiment import *

config = Experiment(
    task=Omniglot(ways=5, train=Shots(shots=1, queries=1), test=Shots(shots=1, queries=15)),
    model=Conv4(),
    learner=MAML(),
    inner=Inner(learning_rate=2.0, steps=1, first_order=True, frozen=("norms",)),
    outer=Outer(learning_rate=2e-3, schedule="cosine", final_fraction=0.01),
    training=TrainingSettings(steps=60_000, tasks_per_step=32, steps_per_call=100, checkpoint_every=5_000),
    evaluation=EvaluationSettings(steps=3),
)
