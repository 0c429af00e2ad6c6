"""A callback for Lightning (`lightning` or `pytorch_lightning`).

>>> trainer = Trainer(…, callbacks=[TidingsCallback(title="Digits")])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._job import Job
from ._training import Training

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback
else:
    try:
        from lightning.pytorch.callbacks import Callback
    except ImportError:
        from pytorch_lightning.callbacks import Callback


class TidingsCallback(Callback):
    """Reports steps, epochs and their metrics. A user who cancels the job stops the training after the present batch; an exception fails the job."""

    def __init__(self, job: Job | None = None, title: str | None = None) -> None:
        super().__init__()
        self._training = Training(job, title)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self._training.begin({"epochs": trainer.max_epochs, "model": type(pl_module).__name__})

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        total = trainer.estimated_stepping_batches
        self._training.report(trainer.global_step, total if 0 < total < float("inf") else None, f"Step {trainer.global_step}")
        if self._training.is_cancelled:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        epochs = trainer.max_epochs
        of = f"/{epochs}" if epochs and epochs > 0 else ""
        self._training.report(None, None, f"Epoch {trainer.current_epoch + 1}{of}", trainer.callback_metrics)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._training.end(exception)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._training.end()
