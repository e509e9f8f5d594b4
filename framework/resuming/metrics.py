"""What has been logged and accumulated so far in an epoch, as plain tensors that go into a checkpoint.

Lightning keeps the running means of ``self.log`` and does not save them; torchmetrics keeps its states out of a
checkpoint unless a metric is persistent. Without them the epoch means of a resumed epoch are those of its rest.
"""

from __future__ import annotations

import builtins
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from torch import Tensor
from torchmetrics import Metric

_META = (
    "fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx", "dataloader_idx",
    "metric_attribute",
)  # fmt: skip


def capture(trainer: Trainer, pl_module: LightningModule, in_epoch: bool) -> dict[str, Any]:
    """What this process has accumulated.

    Args:
        trainer: The trainer, in ``fit``.
        pl_module: The module; its metrics are found wherever in it they are.
        in_epoch: Whether the epoch goes on; else what it logged is reset before the next and need not be kept.

    Returns:
        Tensors on the CPU, numbers, strings, lists and dictionaries.
    """
    loop = trainer.fit_loop.epoch_loop
    reset_next = [each.value for each in loop.val_loop._results.values() if isinstance(each.value, Metric)]
    if not in_epoch:
        reset_next += [each.value for each in loop._results.values() if isinstance(each.value, Metric)]
    return {
        "results": {key: _result(each) for key, each in loop._results.items() if in_epoch and not each.has_reset},
        "metrics": {
            name: _metric(each)
            for name, each in pl_module.named_modules()
            if isinstance(each, Metric) and each.update_called and not any(each is other for other in reset_next)
        },
        "callback_metrics": {name: _plain(value) for name, value in trainer.callback_metrics.items()},
    }


def restore(trainer: Trainer, pl_module: LightningModule, state: dict[str, Any]) -> None:
    """Take what :func:`capture` gave; for a callback's ``on_train_start``, after the sanity check has reset all.

    Args:
        trainer: The trainer.
        pl_module: The module.
        state: The state of this process.
    """
    modules = dict(pl_module.named_modules())
    for name, saved in state["metrics"].items():
        metric = modules.get(name)
        if isinstance(metric, Metric):
            _fill(metric, saved, pl_module.device)
    results = trainer.fit_loop.epoch_loop._results
    for key, saved in state["results"].items():
        attribute = saved["meta"]["metric_attribute"]
        source = None if attribute is None else modules.get(attribute)
        if attribute is None or source is not None:
            results[key] = _rebuilt(trainer, saved, source, pl_module.device)
    connector = trainer._logger_connector
    connector._callback_metrics.update(_moved(state["callback_metrics"], pl_module.device))
    if state["results"]:
        # Else Lightning takes the next batch for the first of its epoch and resets what was restored.
        connector._first_loop_iter = False


def _result(result: _ResultMetric) -> dict[str, Any]:
    meta, sync = result.meta, result.meta.sync
    saved: dict[str, Any] = {
        "meta": {name: getattr(meta, name) for name in _META},
        "reduce": meta.reduce_fx.__name__,
        "builtin": meta.reduce_fx in (builtins.sum, builtins.max, builtins.min),
        "sync": {"should": sync.should, "rank_zero_only": sync.rank_zero_only},
        "forward": _plain(result._forward_cache),
    }
    if result.is_tensor:
        saved["value"] = _plain(result.value)
        if meta.is_mean_reduction:
            saved["size"] = _plain(torch.as_tensor(result.cumulated_batch_size))
    return saved


def _rebuilt(trainer: Trainer, saved: dict[str, Any], source: Any, device: torch.device) -> _ResultMetric:
    meta = _Metadata(
        **saved["meta"], reduce_fx=getattr(builtins if saved["builtin"] else torch, saved["reduce"])
    )  # as Lightning's `log` makes it, for it compares the two
    sync = saved["sync"]
    meta.sync = _Sync(
        _should=sync["should"], fn=trainer.strategy.reduce, _group=None, rank_zero_only=sync["rank_zero_only"]
    )
    result = _ResultMetric(meta, is_tensor=source is None).to(device)
    if source is None:
        result.value = saved["value"].to(device)
        if "size" in saved:
            result.cumulated_batch_size = saved["size"].to(device)
    else:
        result.value = source
    result._forward_cache = _moved(saved["forward"], device)
    result._update_count = 1  # else computing it warns that nothing has been accumulated
    return result


def _metric(metric: Metric) -> dict[str, Any]:
    states = {name: _plain(getattr(metric, name)) for name in metric._defaults}
    return {"states": states, "updates": metric._update_count, "forward": _plain(metric._forward_cache)}


def _fill(metric: Metric, saved: dict[str, Any], device: torch.device) -> None:
    for name, value in saved["states"].items():
        setattr(metric, name, _moved(value, device))
    metric._update_count = saved["updates"]
    metric._forward_cache = _moved(saved["forward"], device)
    metric._computed = None


def _plain(value: Any) -> Any:
    """Tensors copied to the CPU, in lists and dictionaries; anything else that is no plain number or string is left."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, int | float | str | None) else None


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    if isinstance(value, dict):
        return {key: _moved(each, device) for key, each in value.items()}
    if isinstance(value, list):
        return [_moved(each, device) for each in value]
    return value
