"""Training loops. Each test needs its packages, and is skipped without them. Those that need PyTorch are run by hand, because it is large."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import Server, missing, needs, token

import tidings


@pytest.fixture
def configured(server: Server) -> Iterator[Server]:
    tidings.configure(server.url, token())
    yield server
    tidings.reporter().close()


def newest(server: Server) -> dict[str, Any]:
    assert tidings.flush(10)
    return server.get("/api/jobs?job_type=training&limit=1")["jobs"][0]


def stories(server: Server, job_id: str) -> list[str]:
    return [event["message"] for event in server.log() if event.get("job_id") == job_id]


@pytest.fixture
def keras(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Keras, on one of its small or large back ends."""
    found = next((name for name in ("jax", "torch") if importlib.util.find_spec(name)), None)
    if found is None:
        missing("jax")
    monkeypatch.setenv("KERAS_BACKEND", found)
    return needs("keras")


def keras_model(keras: Any) -> Any:
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.compile(loss="mse", optimizer="sgd")
    return model


def test_keras_reports_batches_epochs_and_metrics(configured: Server, keras: Any) -> None:
    numpy = needs("numpy")
    from tidings.integrations.keras import TidingsCallback

    keras_model(keras).fit(numpy.zeros((64, 2)), numpy.zeros(64), epochs=3, batch_size=8, verbose=0, callbacks=[TidingsCallback(title="Digits")])
    job = newest(configured)
    assert (job["status"], job["metadata"]["title"], job["metadata"]["loss"], job["metadata"]["epochs"]) == ("completed", "Digits", 0.0, 3)
    assert "Epoch 3/3" in stories(configured, job["job_id"])


def test_keras_stops_when_its_job_is_cancelled_and_fails_with_its_block(configured: Server, keras: Any) -> None:
    numpy = needs("numpy")
    from tidings.integrations.keras import TidingsCallback

    class Cancel(keras.callbacks.Callback):  # type: ignore[misc, name-defined]
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                configured.post(f"/api/jobs/{newest(configured)['job_id']}/cancel", {})
            assert tidings.flush(10)

    data = numpy.zeros((64, 2)), numpy.zeros(64)
    history = keras_model(keras).fit(*data, epochs=500, verbose=0, callbacks=[Cancel(), TidingsCallback()])
    assert len(history.epoch) < 20
    assert newest(configured)["status"] == "cancelled"

    class Break(keras.callbacks.Callback):  # type: ignore[misc, name-defined]
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError), tidings.job("training"):
        keras_model(keras).fit(*data, epochs=5, verbose=0, callbacks=[TidingsCallback(), Break()])
    assert newest(configured)["error"]["code"] == "RuntimeError"


def test_the_trainer_of_transformers_is_followed_by_its_callback_handler(configured: Server) -> None:
    """The real callback handler, control and state of Transformers, without a model, which needs PyTorch."""
    transformers = needs("transformers")
    handler_of = needs("transformers.trainer_callback")
    from tidings.integrations.huggingface import TidingsCallback

    handler = handler_of.CallbackHandler([TidingsCallback(title="Tuning")], None, None, None, None)
    state, control = transformers.TrainerState(max_steps=10, is_world_process_zero=True), transformers.TrainerControl()
    args = SimpleNamespace(num_train_epochs=1)
    handler.on_train_begin(args, state, control)
    for step in range(1, 6):
        state.global_step = step
        control = handler.on_step_end(args, state, control)
        handler.on_log(args, state, control, {"loss": math.nan if step == 1 else 0.5})
    job = newest(configured)
    assert (job["progress"], job["message"], job["metadata"]["loss"], job["metadata"]["title"]) == (50.0, "Step 5/10", 0.5, "Tuning")
    configured.post(f"/api/jobs/{job['job_id']}/cancel", {})
    handler.on_step_end(args, state, control)
    assert tidings.flush(10)
    assert handler.on_step_end(args, state, control).should_training_stop
    handler.on_train_end(args, state, control)
    assert newest(configured)["status"] == "cancelled"


def test_the_trainer_of_transformers_reports_its_steps_and_stops_on_request(configured: Server, tmp_path: Path) -> None:
    torch = needs("torch")
    transformers = needs("transformers")
    needs("accelerate")
    from tidings.integrations.huggingface import TidingsCallback

    class Model(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def forward(self, inputs: Any, labels: Any) -> Any:
            found = self.layer(inputs)
            return {"loss": torch.nn.functional.mse_loss(found, labels), "logits": found}

    class Cancel(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2:
                configured.post(f"/api/jobs/{newest(configured)['job_id']}/cancel", {})
            assert tidings.flush(10)

    def train(steps: int, *callbacks: Any) -> Any:
        options = {"save_strategy": "no", "logging_steps": 1, "report_to": [], "use_cpu": True, "disable_tqdm": True}
        args = transformers.TrainingArguments(output_dir=str(tmp_path), max_steps=steps, **options)
        data = [{"inputs": torch.zeros(2), "labels": torch.zeros(1)}] * 8
        trainer = transformers.Trainer(model=Model(), args=args, train_dataset=data, callbacks=list(callbacks))
        trainer.train()
        return trainer

    train(3, TidingsCallback(title="Tuning"))
    job = newest(configured)
    assert (job["status"], job["metadata"]["title"], job["metadata"]["max_steps"]) == ("completed", "Tuning", 3)
    assert job["metadata"]["loss"] >= 0
    assert "Step 3/3" in stories(configured, job["job_id"])
    assert train(500, Cancel(), TidingsCallback()).state.global_step < 20
    assert newest(configured)["status"] == "cancelled"


def test_lightning_reports_epochs_and_fails_with_an_exception(configured: Server) -> None:
    lightning = needs("lightning.pytorch")
    torch = needs("torch")
    from tidings.integrations.lightning import TidingsCallback

    class Model(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, broken: bool = False) -> None:
            super().__init__()
            self.layer, self.broken = torch.nn.Linear(2, 1), broken

        def training_step(self, batch: Any, index: int) -> Any:
            if self.broken:
                raise RuntimeError("no memory")
            loss = self.layer(batch).sum()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.01)

    def trainer(callback: Any) -> Any:
        return lightning.Trainer(max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[callback])

    data = torch.utils.data.DataLoader(torch.zeros(8, 2))
    trainer(TidingsCallback(title="Digits")).fit(Model(), data)
    job = newest(configured)
    assert (job["status"], job["metadata"]["title"]) == ("completed", "Digits")
    assert "Epoch 2/2" in stories(configured, job["job_id"])
    with pytest.raises(RuntimeError):
        trainer(TidingsCallback()).fit(Model(True), data)
    assert newest(configured)["error"]["code"] == "RuntimeError"


def test_the_callback_of_lightning_follows_the_documented_hooks(configured: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Lightning, which needs PyTorch: the hooks and attributes of its documentation, called in their order."""
    import sys
    from types import ModuleType

    for name in ("lightning", "lightning.pytorch", "lightning.pytorch.callbacks"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["lightning.pytorch.callbacks"].Callback = object  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, "tidings.integrations.lightning", raising=False)
    from tidings.integrations.lightning import TidingsCallback

    trainer = SimpleNamespace(
        is_global_zero=True, max_epochs=2, estimated_stepping_batches=4, global_step=0, current_epoch=0, callback_metrics={"loss": 0.5}, should_stop=False
    )
    for error in (None, RuntimeError("no memory")):
        callback = TidingsCallback(title="Digits")
        callback.on_train_start(trainer, self_module := object())
        trainer.global_step = 2
        callback.on_train_batch_end(trainer, self_module, None, None, 1)
        callback.on_train_epoch_end(trainer, self_module)
        assert (job := newest(configured))["progress"] == 50.0
        assert (job["message"], job["metadata"]["loss"]) == ("Epoch 1/2", 0.5)
        if error:
            callback.on_exception(trainer, self_module, error)
            assert newest(configured)["error"]["code"] == "RuntimeError"
        else:
            callback.on_train_end(trainer, self_module)
            assert newest(configured)["status"] == "completed"
