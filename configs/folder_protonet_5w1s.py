"""Prototypical networks on a folder of your own images, 5-way 1-shot.

    metajax train folder_protonet_5w1s --task.source FOLDER

The baseline without inner steps. As `folder_maml_5w1s`, but each query gets the class of the nearest class mean.

Measured on the images of `folder_maml_5w1s`, at 64 pixels, on two cores (2 CPU devices), seed 0, 200 test tasks of 15
queries per class, after 0 inner steps: 28.15 ± 0.99 % transductive, 27.59 ± 0.92 % non-transductive; 3.5 minutes of
training while the machine also ran other work.
"""

from metajax.experiment import *

config = Experiment(
    task=FolderConfig(ways=5, train=Shots(shots=1, queries=15), test=Shots(shots=1, queries=15), size=84),
    model=Conv4Config(channels=32, pool=True),
    learner=PrototypicalNetworkConfig(),
    inner=Inner(learning_rate=0.01, steps=0),
    outer=Outer(learning_rate=1e-3, schedule="cosine", clip_value=10.0),
    training=TrainingSettings(steps=1_000, tasks_per_step=4, steps_per_call=10, checkpoint_every=200),
    evaluation=EvaluationSettings(steps=0, num_tasks=200),
)
