"""Reinforcement learning: environments with reward components, collectors, replay that re-prices the past."""
