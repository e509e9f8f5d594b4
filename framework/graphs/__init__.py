"""Graphs of nodes to classify: the batch, where graphs come from, and baselines without learning a graph."""
