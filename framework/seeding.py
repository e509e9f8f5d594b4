"""Seeds that depend on nothing but what they are for, so that a run that was killed draws again what it drew."""

from __future__ import annotations

import os
import random
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from lightning.pytorch import Trainer


_64_BITS = 2**64 - 1


def run_seed() -> int:
    """The seed of ``seed_everything``, or 0 where nobody has called it."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def derive(seed: int, *keys: int | str) -> int:
    """A seed for one purpose: equal arguments give equal seeds on every machine, others give unrelated ones.

    Args:
        seed: Seed of the run, not negative.
        keys: What it is for: names, and numbers that are not negative, such as ``"epoch", rank, epoch``.

    Returns:
        A number in [0, 2^64), which torch's generators take.
    """
    import numpy as np

    return int(seed_sequence(seed, *keys).generate_state(1, np.uint64)[0])


def seed_sequence(seed: int, *keys: int | str, words: int = 4) -> np.random.SeedSequence:
    """Where more than 64 bits for one purpose come from.

    Args:
        seed: Seed of the run, not negative.
        keys: What it is for, as for :func:`derive`.
        words: How many words of 32 bits are remembered of them, at least 4.
    """
    import numpy as np

    known = [zlib.crc32(key.encode()) if isinstance(key, str) else key for key in keys]
    # With their number, because SeedSequence takes (1,) and (1, 0) for the same.
    return np.random.SeedSequence([seed, len(known), *known], pool_size=words)


def nth(seed: int, number: int) -> int:
    """One of many seeds made from one, in a microsecond, where :func:`derive` takes 25.

    Args:
        seed: A number in [0, 2^64), derived for what all of them are for.
        number: Which one, not negative.

    Returns:
        Number ``number`` of the sequence of SplitMix64 (Steele, Lea and Flood, 2014) that begins at ``seed``.
    """
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) & _64_BITS
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _64_BITS
    return z ^ (z >> 31)


def seed_all(seed: int) -> None:
    """Seed the global generators of torch (all devices in use), numpy and Python, in microseconds.

    Args:
        seed: A number in [0, 2^64). Unlike Lightning's ``seed_everything`` this leaves the seed of the run as it is.
    """
    import numpy as np
    import torch

    # Not torch.manual_seed: it notes the seed for devices that nobody uses, which takes 0.2 ms and more with each call.
    torch.default_generator.manual_seed(seed)
    for device in (torch.cuda, torch.xpu):
        if device.is_initialized():
            device.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def seed_epoch(trainer: Trainer, seed: int, epoch: int) -> None:
    """Make all that an epoch draws depend on (seed, rank, epoch) alone; for a callback's ``on_train_epoch_start``.

    That is the order of the data, even where the loader has a generator of its own, what workers draw, augmentation and
    dropout. The train loader's iterator is made
    here, because Lightning makes it at other times in the first epoch, in later epochs and after a resume, which would
    each draw another order from the same seed.

    Args:
        trainer: The trainer, which must reload the train loader in every epoch or have none that remembers.
        seed: Seed of the run.
        epoch: Which epoch to draw; samplers with ``set_epoch`` are told, too.
    """
    from lightning.fabric.utilities.data import _set_sampler_epoch

    loop = trainer.fit_loop
    if loop._combined_loader is None or loop._data_fetcher is None:
        raise RuntimeError("the train loader has not been made yet: call seed_epoch in on_train_epoch_start")
    for loader in loop._combined_loader.flattened:
        _set_sampler_epoch(loader, epoch)
        for owner in (loader, loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)):
            generator = getattr(owner, "generator", None)
            if generator is not None:  # equal on all ranks, as it was made
                generator.manual_seed(derive(seed, "generator", epoch))
            start_epoch = getattr(owner, "start_epoch", None)
            if callable(start_epoch):  # an order that can be resumed draws from this seed, too
                start_epoch(seed, epoch)
    seed_all(derive(seed, "epoch", trainer.global_rank, epoch))
    iter(loop._data_fetcher)
    # Lightning would now make a second iterator, unless it resumes: it knows that one has just been made then. It sets
    # this back at the end of each epoch.
    loop._resuming_from_checkpoint = True
