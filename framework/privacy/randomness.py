"""Generators of noise and batches that nobody can guess.

Torch's generator for the CPU takes 32 bits of a seed, whatever is handed to it: who sees noise can try them all. A
secret here has 256 bits, and all of the generator's state is made of it.
"""

from __future__ import annotations

import secrets

import numpy as np
import torch

from framework.seeding import derive, seed_sequence

SEEDS = 2**63
"""How many seeds a user can give; secrets are above them."""
_MARK, _FIRST, _WORDS = (
    5489,
    24,
    624,
)  # of the state of torch's generator: where the words of the Mersenne twister begin


def secret() -> int:
    """A seed of 256 bits from the operating system's randomness."""
    return SEEDS + secrets.randbits(256)


def generator(seed: int, *keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose: equal arguments give equal ones, others unrelated ones.

    Args:
        seed: One that a user gave, below :data:`SEEDS`, or a :func:`secret`.
        keys: What it is for: names, and numbers that are not negative.
        device: Where it draws. On a GPU torch's generators have a key of 64 bits, and no more can be handed over.

    Raises:
        RuntimeError: If the state of torch's generator is not laid out as known.
    """
    made = torch.Generator(device)
    if seed < SEEDS:
        return made.manual_seed(derive(seed, *keys))
    sequence = seed_sequence(seed, *keys, words=8)
    if made.device.type != "cpu":
        return made.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
    state = made.manual_seed(_MARK).get_state().numpy()
    words = state[_FIRST : _FIRST + 8 * _WORDS].view(np.uint64)
    if words[0] != _MARK:  # the first word of a new state is the seed
        raise RuntimeError(
            "torch's generator keeps its state in another way than this version knows: no secret fits in"
        )
    words[:] = sequence.generate_state(_WORDS)
    made.set_state(torch.from_numpy(state))
    return made
