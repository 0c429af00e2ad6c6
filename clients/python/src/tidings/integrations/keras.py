"""A callback for Keras 3.

>>> model.fit(…, callbacks=[TidingsCallback(title="Digits")])

Keras tells its callbacks about no exception: train within `with tidings.job("training"):`, so that one fails the job.
"""

from __future__ import annotations

from typing import Any

import keras

from .._job import Job
from ._training import Training


class TidingsCallback(keras.callbacks.Callback):
    """Reports batches, epochs and their metrics. A user who cancels the job stops the training after the present batch."""

    def __init__(self, job: Job | None = None, title: str | None = None) -> None:
        super().__init__()
        self._training = Training(job, title)
        self._epoch = 0

    def on_train_begin(self, logs: Any = None) -> None:
        self._training.begin({"epochs": self.params.get("epochs"), "steps": self.params.get("steps")})

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        epochs, steps = self.params.get("epochs"), self.params.get("steps")
        done = self._epoch + (batch + 1) / steps if steps else None
        self._training.report(done, epochs, None)
        if self._training.is_cancelled:
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        epochs = self.params.get("epochs")
        self._training.report(epoch + 1, epochs, f"Epoch {epoch + 1}/{epochs}", logs)

    def on_train_end(self, logs: Any = None) -> None:
        self._training.end()
