"""Strategies beside those of Flower."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg


class FedAvgPerKey(FedAvg):
    """Federated averaging of partial updates: each weight is averaged over the clients that sent it.

    ``w_k = sum_i n_i w_ik / sum_i n_i`` over the clients ``i`` whose reply holds the weight ``k``. A weight that nobody
    sent stays as it is, bit by bit. Flower's ``FedAvg`` refuses replies with different keys, and its averaging would
    divide by the weight of all clients, which shrinks what few of them sent. Where everybody sends everything, both do
    the same (McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, algorithm 1).
    """

    partial = True
    """Whether replies may hold some of the weights only."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average what came; see the class."""
        valid, _ = self._check_and_log_replies(replies, is_train=True, validate=False)
        if not valid:
            return None, None
        sums: dict[str, np.ndarray] = {}
        weights: dict[str, float] = {}
        for reply in valid:
            weight = float(next(iter(reply.content.metric_records.values()))[self.weighted_by_key])  # type: ignore[arg-type]
            for key, array in next(iter(reply.content.array_records.values())).items():
                share = array.numpy() * weight
                sums[key] = sums[key] + share if key in sums else share
                weights[key] = weights.get(key, 0.0) + weight
        arrays = ArrayRecord({key: Array(np.asarray(total / weights[key])) for key, total in sums.items()})
        return arrays, self.train_metrics_aggr_fn([reply.content for reply in valid], self.weighted_by_key)
