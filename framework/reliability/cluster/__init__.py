"""A cluster under failures, event by event: gang scheduling, priorities, preemption, repairs, lemon nodes.

A large job that comes back from a failure takes nodes from jobs of lower priority, which then lose work as well: the
loss of second order that a model of one job cannot show (Kokolis et al., HPCA 2025, arXiv 2410.21680).

All times are minutes unless a name says otherwise.
"""
