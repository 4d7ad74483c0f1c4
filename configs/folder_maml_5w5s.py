"""MAML on a folder of your own images, 5-way 5-shot.

    metajax train folder_maml_5w5s --task.source FOLDER

As `folder_maml_5w1s`, with 5 shots.

Measured on two cores (2 CPU devices, bfloat16) with `tiny_imagenet_60.zip` at 64 pixels, 128 classes to train and 40 to
test, seed 0, 200 test tasks, after 10 inner steps: 40.78 ± 1.12 % transductive, 40.51 ± 1.09 % non-transductive; 10.2
minutes of training while the machine also ran other work. The evaluation took additional time, mostly for the
non-transductive score.
"""

from metajax.experiment import *

config = Experiment(
    task=FolderConfig(ways=5, train=Shots(shots=5, queries=15), test=Shots(shots=5, queries=15), size=84),
    model=Conv4Config(channels=32, pool=True),
    learner=MAMLConfig(),
    inner=Inner(learning_rate=0.05, steps=5),
    outer=Outer(learning_rate=1e-3, schedule="cosine", clip_value=10.0),
    training=TrainingSettings(steps=300, tasks_per_step=4, steps_per_call=10, checkpoint_every=100),
    evaluation=EvaluationSettings(steps=10, num_tasks=200),
)
