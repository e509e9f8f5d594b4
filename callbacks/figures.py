"""Save the pictures a person would look at, and send them to the loggers."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning import Callback, LightningModule, Trainer

from framework.figures import Drawable, close, learning_curve, png
from framework.rundir import run_directory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Figures(Callback):
    """Draw the module's figures and its learning curve, as PNG files in ``<run dir>/figures``.

    A module says what to draw with a method ``figures() -> dict[str, matplotlib.figure.Figure]``; it is called on rank
    zero alone, so it must not communicate. Another callback with such a method is asked, too. The learning curve
    (losses, and the metric named by the module's ``monitor``) needs nothing of the module. All are drawn after ``fit``;
    the figures of module and callbacks also after ``test``, when they show the tested weights, and every few epochs if
    asked for. Loggers that take images (W&B, TensorBoard) receive each figure as ``figures/<name>``. A
    ``fast_dev_run`` draws, but writes nothing.

    Args:
        every_n_epochs: Draw the module's figures after every so many epochs with a validation, too, into
            ``figures/epochs/<name>-<epoch>.png``; ``None`` for the end only.
        learning_curve: Whether to draw ``learning_curve.png`` after ``fit``.

    Raises:
        ValueError: If ``every_n_epochs`` is below 1.
        TypeError: At set-up, if the module has no ``figures()`` although it is needed: because no learning curve is
            wanted, or because ``every_n_epochs`` is given.
    """

    def __init__(self, every_n_epochs: int | None = None, learning_curve: bool = True) -> None:
        if every_n_epochs is not None and every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1 or null, got {every_n_epochs}")
        self.every_n_epochs = every_n_epochs
        self.learning_curve = learning_curve
        self._history: dict[str, list[tuple[float, float]]] = {}
        self._validation_names: set[str] = set()
        self._names_before: set[str] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not _drawables(trainer, pl_module) and (not self.learning_curve or self.every_n_epochs is not None):
            raise TypeError(
                f"{type(pl_module).__name__} has no figures(), which Figures needs: "
                "a method that returns a dict of matplotlib figures by name"
            )

    # What was logged, by epochs done. Kept here because not every logger can be read back.

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._names_before = set(trainer.callback_metrics)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_names |= set(trainer.callback_metrics) - self._names_before
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._remember(trainer, self._validation_names, _epochs_done(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs = trainer.current_epoch + 1
        self._remember(trainer, set(trainer.callback_metrics) - self._validation_names, epochs)
        validated = trainer.enable_validation and epochs % (trainer.check_val_every_n_epoch or 1) == 0
        if self.every_n_epochs is not None and validated and epochs % self.every_n_epochs == 0:
            self._draw(trainer, pl_module, epoch=epochs)

    def _remember(self, trainer: Trainer, names: set[str], epochs: float) -> None:
        for name in sorted(names & set(trainer.callback_metrics)):
            self._history.setdefault(name, []).append((float(epochs), float(trainer.callback_metrics[name])))

    def state_dict(self) -> dict[str, Any]:
        return {"history": {name: [list(point) for point in points] for name, points in self._history.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._history = {name: [(x, y) for x, y in points] for name, points in state_dict["history"].items()}

    # Drawing

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        extra = {}
        if self.learning_curve and trainer.is_global_zero:
            figure = learning_curve(self._history, getattr(pl_module, "monitor", None))
            extra = {} if figure is None else {"learning_curve": figure}
        self._draw(trainer, pl_module, extra)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module)

    def _draw(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        extra: Mapping[str, Figure] | None = None,
        epoch: int | None = None,
    ) -> None:
        directory = run_directory(trainer) / "figures"  # communicates: on all ranks
        if not trainer.is_global_zero:
            return
        figures = dict(extra or {})
        for source in _drawables(trainer, pl_module):
            figures |= _checked(source)
        for name, figure in figures.items():
            image = png(figure)
            close(figure)
            if trainer.fast_dev_run:  # type: ignore[attr-defined]
                continue  # drawn, so that mistakes show, but a trial run leaves no files
            path = directory / (f"{name}.png" if epoch is None else f"epochs/{name}-{epoch:04d}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image)
            for logger in trainer.loggers:
                _send(logger, f"figures/{name}", path, image, trainer.global_step)


def _drawables(trainer: Trainer, pl_module: LightningModule) -> list[Drawable]:
    """The module, and other callbacks, as far as they have figures."""
    return [each for each in (pl_module, *trainer.callbacks) if isinstance(each, Drawable)]  # type: ignore[attr-defined]


def _checked(source: Drawable) -> dict[str, Figure]:
    """The figures of a module or callback; what is none, or could not be a file, is refused."""
    figures, owner = source.figures(), type(source).__name__
    for name, figure in figures.items():
        if not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(f"{owner}.figures() must use plain file names, got {name!r}")
        if not hasattr(figure, "savefig"):
            raise TypeError(
                f"{owner}.figures() must return matplotlib figures, got {type(figure).__name__} for {name!r}"
            )
    return figures


def _epochs_done(trainer: Trainer) -> float:
    """Epochs done at a validation: a fraction where validation comes within an epoch."""
    batches = trainer.num_training_batches
    done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return trainer.current_epoch + (done / batches if 0 < batches < float("inf") else 1.0)


def _send(logger: Any, key: str, path: Path, image: bytes, step: int) -> None:
    """Send an image to a logger that takes images; others keep none."""
    if hasattr(logger, "log_image"):  # W&B
        logger.log_image(key, [str(path)], step=step)
    elif hasattr(logger.experiment, "add_image"):  # TensorBoard; its add_figure would import pyplot
        import numpy as np
        from PIL import Image

        logger.experiment.add_image(
            key, np.asarray(Image.open(io.BytesIO(image)).convert("RGB")), step, dataformats="HWC"
        )
