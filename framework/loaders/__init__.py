"""The one place that rebuilds a DataLoader: the train loader's single path, and re-indexing of any map-style loader.

The train loader goes through stages in a fixed order, whoever registers them and when::

    where it comes from -> partition -> pool -> sampler -> Trainer
    (DataModule, module,   (a client's  (what active  (Poisson batches for
     loader given to fit)   share)       learning      privacy, an order that
                                         bought)       can be resumed)

Each stage turns a loader into a loader and sees only what the stage before it left: a pool of a partition indexes the
partition. A callback registers its stage in ``setup`` (or derives from :class:`StageCallback`), a federated client
calls ``TrainPath.on(datamodule).add(Partition(indices))``; both work under a stock ``lightning.Trainer`` on code that
has never heard of us, because the path wraps the owner's ``train_dataloader`` on the instance.

Here is what stages are written with. Labels are in :mod:`framework.loaders.labels`.
"""

from framework.loaders.callback import StageCallback
from framework.loaders.gathering import Items, TensorSubset
from framework.loaders.path import TrainPath
from framework.loaders.reindexing import rebuild, reindex
from framework.loaders.stages import Partition, Pool, Stage, World

__all__ = [
    "Items",
    "Partition",
    "Pool",
    "Stage",
    "StageCallback",
    "TensorSubset",
    "TrainPath",
    "World",
    "rebuild",
    "reindex",
]
