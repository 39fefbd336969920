"""LossCurveDisplay: the curves of a training, in the style of scikit-learn's displays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from fusedmlp.extras import require


class LossCurveDisplay:
    """The loss of each epoch of a training, with validation samples where there were some.

    Make one by `from_estimator`.

    Parameters
    ----------
    loss : sequence of float
        The training loss of each epoch.
    validation_loss : sequence of float, optional
    best_epoch : int, optional
        From 1: the epoch whose weights were kept, or the one with the lowest loss.
    estimator_name : str, optional

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    line_ : matplotlib Artist
        Of the training loss.
    validation_line_ : matplotlib Artist or None
    best_line_ : matplotlib Artist or None

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from fusedmlp import LossCurveDisplay, MLPClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> model = MLPClassifier(random_state=0, early_stopping=True).fit(X, y)
    >>> display = LossCurveDisplay.from_estimator(model)
    >>> display.ax_.get_xlabel()
    'epoch'
    """

    def __init__(
        self,
        *,
        loss: Sequence[float],
        validation_loss: Sequence[float] | None = None,
        best_epoch: int | None = None,
        estimator_name: str | None = None,
    ) -> None:
        self.loss, self.validation_loss = loss, validation_loss
        self.best_epoch, self.estimator_name = best_epoch, estimator_name

    @classmethod
    def from_estimator(cls, estimator: Any, *, name: str | None = None, ax: Any = None, **kwargs: Any) -> Any:
        """The curves of a fitted estimator.

        Parameters
        ----------
        estimator : MLPClassifier or MLPRegressor, or a Pipeline that ends with one
            Fitted with the solver "sgd" or "adam". scikit-learn's own will do.
        name : str, optional
            Stands in the legend; the class's by default.
        ax : matplotlib Axes, optional
        **kwargs
            Of the training loss's line, for ``Axes.plot``.

        Returns
        -------
        LossCurveDisplay

        Raises
        ------
        ValueError
            There is no loss curve.
        """
        if hasattr(estimator, "steps"):
            estimator = estimator.steps[-1][1]
        check_is_fitted(estimator)
        loss = getattr(estimator, "loss_curve_", None)
        if not loss:
            raise ValueError(
                f"estimator: expected one with a loss_curve_, of solver 'sgd' or 'adam'; got {type(estimator).__name__}"
                f" with solver={getattr(estimator, 'solver', None)!r}"
            )
        validation = getattr(estimator, "validation_loss_curve_", None)
        scores = getattr(estimator, "validation_scores_", None)
        best = int(np.nanargmax(scores)) if scores else int(np.nanargmin(loss))
        display = cls(
            loss=loss,
            validation_loss=validation,
            best_epoch=best + 1,
            estimator_name=name or type(estimator).__name__,
        )
        return display.plot(ax=ax, **kwargs)

    def plot(self, ax: Any = None, *, name: str | None = None, **kwargs: Any) -> LossCurveDisplay:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            New by default.
        name : str, optional
            In place of `estimator_name`.
        **kwargs
            Of the training loss's line.

        Returns
        -------
        LossCurveDisplay
            Itself.
        """
        plt = require("matplotlib.pyplot", "plot", "LossCurveDisplay")
        if ax is None:
            _, ax = plt.subplots()
        name = name or self.estimator_name
        label = f"{name}: training" if name else "training"
        epochs = np.arange(1, len(self.loss) + 1)
        (self.line_,) = ax.plot(epochs, self.loss, **{"label": label, **kwargs})
        self.validation_line_ = self.best_line_ = None
        if self.validation_loss:
            style = {
                "color": self.line_.get_color(),
                "linestyle": "--",
                "label": label.replace("training", "validation"),
            }
            (self.validation_line_,) = ax.plot(
                np.arange(1, len(self.validation_loss) + 1), self.validation_loss, **style
            )
        if self.best_epoch is not None:
            style = {"color": self.line_.get_color(), "linestyle": ":", "label": f"best epoch: {self.best_epoch}"}
            self.best_line_ = ax.axvline(self.best_epoch, **style)
        ax.set(xlabel="epoch", ylabel="loss")
        ax.legend()
        self.ax_, self.figure_ = ax, ax.figure
        return self
