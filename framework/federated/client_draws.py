"""Random numbers of a client: what it draws depends on the run's seed, the round and the client alone."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from framework.seeding import derive, seed_all


@contextmanager
def drawing_by(seed: int, what: str, server_round: int, partition: int) -> Iterator[None]:
    """Within, all that is drawn depends on the arguments; the caller's generators stay as they were.

    Args:
        seed: Seed of the run.
        what: What is done.
        server_round: The round.
        partition: Number of the client.
    """
    own = derive(seed, "client", partition) % 2**32  # for what a client decides once, such as its first labels
    before = os.environ.get("PL_GLOBAL_SEED")
    states = np.random.get_state(), random.getstate()
    os.environ["PL_GLOBAL_SEED"] = str(own)
    try:
        with torch.random.fork_rng():
            seed_all(derive(seed, what, server_round, partition))
            yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])
        if before is None:
            del os.environ["PL_GLOBAL_SEED"]
        else:
            os.environ["PL_GLOBAL_SEED"] = before
