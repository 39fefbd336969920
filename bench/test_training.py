"""A training step by the network's engine: gradients alone, and with the update by Adam."""

from bench.operations import AdamStep, LossAndGradients


def test_loss_and_gradients(timed, shape):
    timed(LossAndGradients(shape))


def test_adam_step(timed, shape):
    timed(AdamStep(shape))
