"""Many trainings at once on the GPU: each network stays in the shared memory of a block, or of a cluster of blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from fusedmlp.backends.cupy.captured_engine import CapturedEngine
from fusedmlp.backends.cupy.crowd_launches import Launches, Shape
from fusedmlp.backends.cupy.crowd_tables import CrowdTables
from fusedmlp.backends.cupy.gpu_primitives import GpuPrimitives
from fusedmlp.backends.cupy.resident import Resident
from fusedmlp.backends.cupy.resident_costs import step_seconds
from fusedmlp.backends.cupy.resident_plan import moments_of
from fusedmlp.engines.base import Engine
from fusedmlp.engines.crowd import Crowd, Stretch
from fusedmlp.engines.feeding import HostMatrix
from fusedmlp.engines.samples import Samples
from fusedmlp.model.activations import Array
from fusedmlp.model.optimizers import Adam, Optimizer

_USUAL_BATCH = 32


class GpuCrowd(Crowd):
    """The networks of one ``fit_many``.

    Networks of one shape are trained by the same launches, those of different shapes by launches in streams of their
    own. X, Y and weights are on the GPU once, whatever part of them a network is trained on.

    Parameters
    ----------
    backend : GpuPrimitives
    """

    def __init__(self, backend: GpuPrimitives) -> None:
        self._backend = backend
        self._shapes: dict[Any, Shape] = {}
        self._found: dict[Any, Shape | None] = {}
        self._columns: WeakKeyDictionary[Samples, Array] = WeakKeyDictionary()

    @property
    def workers(self) -> int:
        """Networks that the GPU trains at the same time, of the shape of which it trains most."""
        return max((shape.resident.at_a_time for shape in self._shapes.values()), default=1)

    def takes(
        self,
        engine: Engine,
        optimizer: Optimizer,
        train: Samples,
        validation: Samples | None,
        batch_size: int,
        drops: bool = False,
    ) -> bool:
        if drops or not isinstance(engine, CapturedEngine) or not engine.covers(engine.architecture, optimizer):
            return False
        if any(samples is not None and isinstance(samples.X, HostMatrix) for samples in (train, validation)):
            return False
        return self._shape_of(engine, optimizer, min(batch_size, train.m)) is not None

    def can_share(self, engine: Engine, train: Samples, batch_size: int) -> bool:
        """A block, or a cluster, is all that a network can use."""
        return False

    def epoch_seconds(self, engine: Engine, train: Samples, validation: Samples | None) -> float:
        """By a count of accesses to shared memory, in batches of 32."""
        assert isinstance(engine, CapturedEngine)
        plan = engine.resident_plan(Adam(), _USUAL_BATCH)
        if plan is None:
            return 1e-6 * train.m
        card, precision = self._backend.launcher.card(), engine.backend.precision
        samples = train.m + (0 if validation is None else validation.m / 3)
        return samples / _USUAL_BATCH * step_seconds(plan, engine.architecture, _USUAL_BATCH, precision, card)

    def run(
        self, stretches: Sequence[Stretch], poll: Callable[[], None], meanwhile: Callable[[], None] | None = None
    ) -> None:
        with self._backend.computing():
            tables = CrowdTables(self._backend, stretches, self._columns)
            launches = self._launches(stretches, tables)
            try:
                poll()
                while any(each.left for each in launches):
                    for each in launches:
                        each.launch()
                    if meanwhile is not None:  # the launches have returned, and are not waited for yet
                        now, meanwhile = meanwhile, None
                        now()
                    for each in launches:
                        each.wait()
                    poll()
            finally:
                for each in launches:
                    each.wait()
                tables.write_down([(number, done) for each in launches for number, done in each.done()])
                for each in launches:
                    each.remember_pace(stretches)

    def _launches(self, stretches: Sequence[Stretch], tables: CrowdTables) -> list[Launches]:
        """The stretches by shape."""
        groups: dict[Shape, list[int]] = {}
        for number, stretch in enumerate(stretches):
            engine, size = stretch.engine, min(stretch.batch_size, stretch.train.m)
            assert isinstance(engine, CapturedEngine)
            shape = self._shape_of(engine, stretch.optimizer_state.optimizer, size)
            assert shape is not None, "a training that the crowd does not take"
            groups.setdefault(shape, []).append(number)
        return [Launches(self._backend, shape, numbers, tables) for shape, numbers in groups.items()]

    def _shape_of(self, engine: CapturedEngine, optimizer: Optimizer, batch_size: int) -> Shape | None:
        """The shape of such a network; None where it is not resident."""
        alike = engine.architecture, engine.backend.precision
        key = (*alike, moments_of(optimizer), batch_size)
        if key not in self._found:
            plan = engine.resident_plan(optimizer, batch_size)
            if plan is None:
                self._found[key] = None
            else:
                same = (*alike, plan.samples, plan.ints.tobytes())
                if same not in self._shapes:
                    resident = Resident(engine.backend, engine.architecture, engine.output_layer, plan)
                    stream = self._backend.xp.cuda.Stream(non_blocking=True)
                    self._shapes[same] = Shape(resident, plan.samples, stream)
                self._found[key] = self._shapes[same]
        return self._found[key]
