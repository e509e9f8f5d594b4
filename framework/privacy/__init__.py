"""Differential privacy by DP-SGD, on any LightningModule, by means of Opacus.

- :mod:`framework.privacy.accounting`: what is spent, and how much noise a budget needs.
- :mod:`framework.privacy.sampling`: Poisson batches, as the sampler stage of the train loader's path.
- :mod:`framework.privacy.pieces`: large batches in pieces that fit into memory, as one step.
- :mod:`framework.privacy.gradients`: from per-sample gradients to one that is clipped and noisy.
- :mod:`framework.privacy.checks`: what DP-SGD cannot be right for is refused, by name and before it trains.
- :mod:`framework.privacy.dp_sgd`: the callback that puts these together in a ``fit``.
- :mod:`framework.privacy.report`: what was guaranteed, in words, numbers and a picture.
"""
