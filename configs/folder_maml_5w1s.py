"""MAML on a folder of your own images, 5-way 1-shot.

    metajax train folder_maml_5w1s --task.source FOLDER

The folder, or a zip of it, holds `split/class/image` or `class/image`. MAML's mini-ImageNet setting: 5 inner steps at
rate 0.05 on the mean loss (0.01 on MAML's sum over 5 ways), 4 tasks of 15 queries a class, 10 steps at test; 1,000
meta-steps (the paper: 60,000).

Measured on two cores (2 CPU devices), seed 0, only to show the way, on 128/32/40 classes of 60 natural images of 64×64
pixels (Tiny ImageNet's): `--task.size 64 --training.steps 60 --evaluation.num-tasks 20`, after 10 steps: 26.87 ± 2.29
% transductive, 26.67 ± 2.65 % each query alone; 1.5 minutes of training, 2.9 with validation and evaluation.
"""

from metajax.experiment import *

config = Experiment(
    task=Folder(ways=5, train=Shots(shots=1, queries=15), test=Shots(shots=1, queries=15), size=84),
    model=Conv4(channels=32, pool=True),
    learner=MAML(),
    inner=Inner(learning_rate=0.05, steps=5),
    outer=Outer(learning_rate=1e-3, schedule="cosine", clip_value=10.0),
    training=TrainingSettings(steps=1_000, tasks_per_step=4, steps_per_call=10, checkpoint_every=100),
    evaluation=EvaluationSettings(steps=10, num_tasks=200),
)
