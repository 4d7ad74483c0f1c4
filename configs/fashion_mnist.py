"""Fashion-MNIST, images of clothing: few-shot classification on five unseen classes.

    metajax data prepare fashion_mnist
    metajax train fashion_mnist
    metajax train fashion_mnist --task.split by_example
    metajax train fashion_mnist --learner protonet --model conv4

MAML with ResNet-18, classes 0-4 for training and 5-9 for test; 10 tasks per meta-step, 15 queries per class, 1 inner
step, 60 meta-steps. The five training classes form only one 5-way problem, whose labels are permuted from task to task.
The test classes are different objects (sandals, shirts, trainers, bags, boots), so little transfers to them. With
`--task.split by_example` both splits have all ten classes, and the test has other pictures of them. The large stem
keeps a meta-step below two seconds on a CPU; on an accelerator `--model.stem small` keeps more detail.

Accuracy on 100 test tasks after 3 inner steps, on two cores (2 CPU devices), seed 0:

    command                    transductive    non-transductive           training
    fashion_mnist            40.99 ± 1.97 %      39.63 ± 1.82 %        1.8 minutes
    --task.split by_example  73.89 ± 2.44 %      71.52 ± 2.35 %        1.2 minutes
"""

from metajax.experiment import *


def config(*, learner: Learner = "maml", model: ImageModel = "resnet18", ways: int = 5, shots: int = 1) -> Experiment:
    """Return the experiment.

    Args:
        learner: The meta-learner.
        model: The network.
        ways: Number of classes in a task.
        shots: Number of support examples of each class.
    """
    sizes = Shots(shots=shots, queries=15)
    experiment = Experiment(
        task=FashionMNISTConfig(ways=ways, train=sizes, test=sizes),
        model=ResNet18Config(stem="large"),
        learner=MAMLConfig(),
        inner=Inner(learning_rate=0.01, steps=1),
        outer=Outer(learning_rate=1e-3, schedule="cosine", clip_norm=10.0),
        training=TrainingSettings(steps=60, tasks_per_step=10, steps_per_call=5, checkpoint_every=20),
        evaluation=EvaluationSettings(steps=3, num_tasks=100),
    )
    return with_learner(with_model(experiment, model, image_size=28), learner)
