"""What has to be settled before a training's first epoch: its state, and which samples are held back for validation."""

from __future__ import annotations

from fusedmlp.checks import check_number
from fusedmlp.engines.samples import Samples, split, validation_part
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.optimizers import Optimizer
from fusedmlp.training.state import Generator, TrainingState


def state_for(
    state: TrainingState | None, optimizer: Optimizer, generator: Generator, architecture: Architecture
) -> TrainingState:
    """The state to go on with: a new one, or the caller's, once it is known to fit.

    Raises
    ------
    ValueError
        It is no TrainingState, of another optimizer, or of another number of parameters.
    """
    if state is None:
        return TrainingState(optimizer=optimizer, generator=generator)
    if not isinstance(state, TrainingState):
        raise ValueError(f"state: expected a TrainingState; got {state!r}")
    if not state.used:
        state.optimizer, state.generator = optimizer, state.generator or generator
        return state
    if state.optimizer != optimizer:
        raise ValueError(f"optimizer: expected that of the state, {state.optimizer}; got {optimizer}")
    sizes = {name: len(moment) for name, moment in state.moments.items()}
    if any(size != architecture.n_parameters for size in sizes.values()):
        raise ValueError(f"state: expected moments of {architecture.n_parameters} parameters; got {sizes}")
    return state


def hold_back(
    state: TrainingState, samples: Samples, fraction: float, largest_copy: int
) -> tuple[Samples, Samples | None]:
    """(samples to train on, samples to validate on or None): a random part, drawn once for a state.

    Parameters
    ----------
    state : TrainingState
    samples : Samples
    fraction : float in [0, 1)
    largest_copy : int
        Arrays in host memory of more bytes are not copied.

    Raises
    ------
    ValueError
        The fraction leaves no sample to train on, or the state has held back a part of other samples.
    """
    if not check_number("validation_fraction", fraction, 0, 1, include_low=True):
        return samples, None
    if state.training_samples is None or state.validation_samples is None:
        assert state.generator is not None
        state.training_samples, state.validation_samples = validation_part(samples.m, fraction, state.generator)
    parts = state.training_samples, state.validation_samples
    if sum(map(len, parts)) != samples.m:
        raise ValueError(f"state: expected the {sum(map(len, parts))} samples of the calls before; got {samples.m}")
    return split(samples, parts, largest_copy)
