"""Low-rank inner updates of a small vision Transformer on Omniglot, 5-way 1-shot.

    metajax data prepare omniglot
    metajax train omniglot_lora_vit_5w1s

Every linear layer of a Transformer of 16 patches, width 64 and 3 blocks adapts by an update of rank 4, in 3 steps at
rate 0.3; all else is meta-learned and stays put in the inner loop. Normalisation is by layer, so no
query sees another.

Not measured here: it takes about a quarter of an hour on two cores.
"""

from metajax.experiment import *

config = Experiment(
    task=Omniglot(ways=5, train=Shots(shots=1, queries=5), test=Shots(shots=1, queries=15)),
    model=ViT(patch=7, width=64, layers=3, heads=4),
    learner=LoRA(rank=4, adapts=("kernel",)),
    inner=Inner(learning_rate=0.3, steps=3),
    outer=Outer(learning_rate=1e-3, schedule="cosine", final_fraction=0.01, clip_norm=10.0),
    training=TrainingSettings(steps=1_500, tasks_per_step=16, checkpoint_every=500),
    evaluation=EvaluationSettings(steps=5),
)
