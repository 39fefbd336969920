"""scikit-learn's own callbacks, where the installed scikit-learn has them (1.9 and later)."""

from __future__ import annotations

from typing import Any

try:
    from sklearn.callback import CallbackSupportMixin as CallbackSupportMixin
    from sklearn.callback import with_callbacks as with_callbacks
except ImportError:  # scikit-learn before 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Nothing: this scikit-learn has no callbacks."""

    def with_callbacks(method: Any) -> Any:
        """The method itself."""
        return method


class Callbacks:
    """The callbacks of one fit.

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor
    epochs : int
        The most epochs; 0 where the solver has none.
    X, y, metadata
        What the callbacks may ask for.
    """

    def __init__(self, estimator: Any, epochs: int, X: Any, y: Any, metadata: dict[str, Any]) -> None:
        self._estimator, self._given = estimator, {"X": X, "y": y, "metadata": metadata}
        self._epoch: Any = None
        self._context: Any = None
        if getattr(estimator, "_skl_callbacks", None) or hasattr(estimator, "_parent_callback_ctx"):
            self._context = estimator._init_callback_context(max_subtasks=epochs)
            self._context.call_on_fit_task_begin(estimator=estimator, **self._given)

    def epoch_begins(self) -> None:
        """Call the callbacks' `on_fit_task_begin` for an epoch."""
        if self._context is not None:
            self._epoch = self._context.subcontext(task_name="epoch")
            self._epoch.call_on_fit_task_begin(estimator=self._estimator, **self._given)

    def epoch_ends(self) -> bool:
        """Call their `on_fit_task_end`; whether one of them asks to stop."""
        if self._context is None:
            return False
        return bool(
            self._epoch.call_on_fit_task_end(
                estimator=self._estimator, **self._given, reconstruction_attributes=self._estimator._fitted_now
            )
        )

    def fit_ends(self) -> None:
        """Call their `on_fit_task_end` for the fit as a whole."""
        if self._context is not None:
            self._context.call_on_fit_task_end(
                estimator=self._estimator, **self._given, reconstruction_attributes=self._estimator._fitted_now
            )
