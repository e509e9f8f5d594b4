"""Weights of reward components from preferences between trajectories.

A person, or a rule, says which of two trajectories is better. With ``s`` the sums of a trajectory's reward components,
the Bradley-Terry model takes it for better with probability ``1 / (1 + exp(-w . (s - s')))``. The likelihood of ``w``
is concave: a logistic regression on differences, without intercept. How large ``w`` is says how sure preferences are.

``python -m framework.rl.preferences pairs.csv components.csv`` prints the weights; ``--json`` for programs.
"""
