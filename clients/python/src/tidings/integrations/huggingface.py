"""A callback for the `Trainer` of Hugging Face Transformers.

>>> trainer = Trainer(…, callbacks=[TidingsCallback(title="Fine-tuning")])

The trainer tells its callbacks about no exception: train within `with tidings.job("training"):`, so that one fails the job.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from .._job import Job
from ._training import Training


class TidingsCallback(TrainerCallback):
    """Reports steps and logged metrics. A user who cancels the job stops the training after the present step."""

    def __init__(self, job: Job | None = None, title: str | None = None) -> None:
        self._training = Training(job, title)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self._training.begin({"max_steps": state.max_steps, "epochs": args.num_train_epochs})

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        self._training.report(state.global_step, state.max_steps, f"Step {state.global_step}/{state.max_steps}")
        if self._training.is_cancelled:
            control.should_training_stop = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self._training.report(state.global_step, state.max_steps, None, logs)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._training.end()
