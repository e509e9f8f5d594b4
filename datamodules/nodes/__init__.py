"""Nodes to classify: bundled sets, citation graphs, a synthetic set with known truth, a user's table."""
