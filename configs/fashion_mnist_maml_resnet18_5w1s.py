"""MAML with ResNet-18 on Fashion-MNIST, 5-way 1-shot, classes 0-4 for training and 5-9 for test."""

from metajax.experiment import *

config = Experiment(
    task=FashionMNIST(ways=5, train=Shots(shots=1, queries=15), test=Shots(shots=1, queries=15)),
    model=ResNet18(stem="large"),
    learner=MAML(),
    inner=Inner(learning_rate=0.01, steps=1),
    outer=Outer(learning_rate=1e-3, schedule="cosine", clip_norm=10.0),
    training=TrainingSettings(steps=200, tasks_per_step=10, steps_per_call=5, checkpoint_every=50),
    evaluation=EvaluationSettings(steps=5, num_tasks=100),
)
