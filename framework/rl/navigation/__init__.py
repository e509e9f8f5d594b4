"""A mobile robot among static and moving obstacles, whose reward comes as components; ours, not a published benchmark.

``gymnasium.make("framework.rl.navigation.environment:Fulgurite/Navigation-v0")``, or :func:`register` and the plain id.
Everything but ``environment`` works without gymnasium.
"""

from __future__ import annotations

ID = "Fulgurite/Navigation-v0"


def register() -> None:
    """Tell gymnasium of the environment, once; ``make`` and ``make_vec`` then know its id.

    Raises:
        ModuleNotFoundError: If gymnasium is not installed.
    """
    from gymnasium.envs.registration import register as add
    from gymnasium.envs.registration import registry

    if ID not in registry:
        place = "framework.rl.navigation.environment"
        add(ID, entry_point=f"{place}:Navigation", vector_entry_point=f"{place}:VectorNavigation")
