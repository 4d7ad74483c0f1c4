"""Proto-MAML on a folder of your own images, 5-way 1-shot.

    metajax train folder_proto_maml_5w1s --task.source FOLDER

As `folder_maml_5w1s`, but the head is initialised from the class prototypes, and the inner rate is 0.01.

Measured on the images of `folder_maml_5w1s`, at 64 pixels, on two cores (2 CPU devices, operands of convolutions in
bfloat16), seed 0, 200 test tasks, after 10 inner steps: 28.25 ± 0.98 % transductive, 27.81 ± 0.92 % non-transductive;
33 minutes of training, for most of which the machine also ran benchmarks and tests. After such a short training the
accuracy is that of prototypical networks (28.15 %, in float32), and the inner steps at this rate add nothing.
"""

from metajax.experiment import *

config = Experiment(
    task=FolderConfig(ways=5, train=Shots(shots=1, queries=15), test=Shots(shots=1, queries=15), size=84),
    model=Conv4Config(channels=32, pool=True),
    learner=ProtoMAMLConfig(),
    inner=Inner(learning_rate=0.01, steps=5),
    outer=Outer(learning_rate=1e-3, schedule="cosine", clip_value=10.0),
    training=TrainingSettings(steps=1_000, tasks_per_step=4, steps_per_call=10, checkpoint_every=200),
    evaluation=EvaluationSettings(steps=10, num_tasks=200),
)
