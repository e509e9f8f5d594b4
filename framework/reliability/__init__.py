"""Training under failures: rates, effective training time ratio, checkpoint intervals, simulation of a job, fits.

The effective training time ratio (ETTR) is the share of a run's wall-clock time in which it makes progress that lasts:
``R / W`` with ``W = Q + R + U``, queue, productive and unproductive time (Kokolis et al., "Revisiting Reliability in
Large-Scale Machine Learning Research Clusters", HPCA 2025, arXiv 2410.21680).

All times are minutes unless a name says otherwise, and failure rates of a job are per minute.
"""
