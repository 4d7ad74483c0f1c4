"""MAML on a folder of your own images, 5-way 1-shot.

    metajax train folder_maml_5w1s --task.source FOLDER

The folder, or a zip archive of it, has the structure `split/class/image` or `class/image`. The setting is MAML's for
mini-ImageNet. 5 inner steps at rate 0.05 on the mean loss, which equals MAML's rate of 0.01 on its sum over 5 classes.
4 tasks per meta-step with 15 queries per class, and 10 inner steps at test. Training has 1,000 meta-steps; the paper's
has 60,000.

Measured with `--task.size 64` on 128/32/40 classes of 60 natural images of 64×64 pixels (Tiny ImageNet's), on two cores
(2 CPU devices), seed 0, 200 test tasks of 15 queries per class, after 10 inner steps: 33.12 ± 1.20 % transductive,
32.37 ± 1.13 % non-transductive; 7.6 minutes of training while the machine also ran other work.
"""

from metajax.experiment import *

config = Experiment(
    task=FolderConfig(ways=5, train=Shots(shots=1, queries=15), test=Shots(shots=1, queries=15), size=84),
    model=Conv4Config(channels=32, pool=True),
    learner=MAMLConfig(),
    inner=Inner(learning_rate=0.05, steps=5),
    outer=Outer(learning_rate=1e-3, schedule="cosine", clip_value=10.0),
    training=TrainingSettings(steps=1_000, tasks_per_step=4, steps_per_call=10, checkpoint_every=100),
    evaluation=EvaluationSettings(steps=10, num_tasks=200),
)
