"""Off-policy reinforcement learning in plain torch: networks, losses and updates, usable without Lightning.

- :mod:`modules.rl.networks`: actors, and ensembles of critics as one network.
- :mod:`modules.rl.soft_actor_critic`: SAC's updates.
- :mod:`modules.rl.twin_delayed`: TD3's updates.

The modules on top are :class:`modules.sac.SAC` and :class:`modules.td3.TD3`.
"""
