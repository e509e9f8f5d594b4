"""Citation graphs in Planetoid's public files: Cora, Citeseer, Pubmed."""

from __future__ import annotations

import codecs
import hashlib
import os
import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from datamodules.nodes.base import NodeData, NodeSet, mask_of
from framework.graphs.sources import GraphOptions, edges_from_pairs
from framework.paths import data_root, missing_files

Name = Literal["cora", "citeseer", "pubmed"]
PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
VALIDATION = 500  # nodes that follow the training nodes
SOURCE = "https://github.com/kimiyoung/planetoid/tree/af6abf468a772cc055bec88c52e4d6f51b7c37e3/data"
RAW = "https://raw.githubusercontent.com/kimiyoung/planetoid/af6abf468a772cc055bec88c52e4d6f51b7c37e3/data"
# Git object ids at that commit: SHA-1 of "blob <size>\0" and the content.
GIT_IDS = {
    "cora": {
        "x": "c4a91d008245403e7f26aa616b437191509793c0",
        "tx": "6e856d777401ee15dc8619db76c97d0a40ba2d60",
        "allx": "44d53b1fece343538e45592caac521d73c6f98d6",
        "y": "58e30ef120d3553cfaac33ff28c6b5436dbef661",
        "ty": "da1734ab670b5c8ecee78a9c30b35566df916f4b",
        "ally": "04fbd0b083d09341fcf16b395c642329637f0542",
        "graph": "4d3bf85dfc8b1c105a2c995597a1b3eed6947925",
        "test.index": "ded8092db4cd767a367eebe09003b954a5316f24",
    },
    "citeseer": {
        "x": "f094104a66f2689ffbd01085fe6a856689e9db9e",
        "tx": "b2aff18aa1fc6f4f5e8c64db7643b59b24e42584",
        "allx": "592091071ac35b78599c722d0e60b1c655711728",
        "y": "e857ac49b611da98e101a068cf4855350274f68a",
        "ty": "3795f79df0cd1123f4478b77c148a5fbacc4cefb",
        "ally": "7503f81a0b6ac1cc21cb5a97073542a6b1dfe99c",
        "graph": "a01dca663d0103c130f525017a4a9c313037e286",
        "test.index": "62d9e3d5ed53c66b069125af98529d76c70d9b3e",
    },
    "pubmed": {
        "x": "16c0eca8d2b3297014ff80327416f9332eda10d7",
        "tx": "eee4f3c988fde0da87a9ec7b01ca5e7863c1b1f1",
        "allx": "3b86bccf08111c37c632a9dd8ab63db25ea76361",
        "y": "e86670576c85340eeb2271b3c918bfa89322b2cf",
        "ty": "225a0bb9bb6430e3925d04688daf6a0da964c07a",
        "ally": "4c8bcdc80882dd225fe4dd4fafd723baa616ac97",
        "graph": "76eb87e628a6b9d43fc31ea42c8c6c8f3e52b404",
        "test.index": "41f6befcb7750cc4858cb852f2b349a9598cb2f4",
    },
}


class Planetoid(NodeData):
    """A citation graph with the public split: 20 training nodes per class, 500 for validation, 1,000 for testing.

    Each validation node goes to ``val`` or ``stop`` by a fair coin, as in the official code of LDS, so the halves are
    only about equal. Edges are made undirected, repeats and self-loops dropped: Cora has 5,278, not the 5,429 often
    quoted. Citeseer's 15 test nodes that the files skip get no features and no label (-1).

    In YAML::

        data:
          class_path: Planetoid
          init_args:
            name: cora
            graph: {source: given, retained: 25}
            seed: 1

    Args:
        name: The data set.
        graph: The initial graph; by default the citations.
        normalize: Scale the features of each node to sum 1.
        data_dir: Folder with the subfolder ``planetoid``, which holds ``ind.<name>.x`` and seven more files. None means
            the environment variable ``FULGURITE_DATA``, else ``data``.
        download: Fetch missing files from the official repository (MIT licence) and verify them.
        steps_per_epoch: How often an epoch of training serves the graph.
        seed: Seed of the coin flips and of the edges that are retained.

    Raises:
        ValueError: If ``name`` is unknown or a file is damaged.
        FileNotFoundError: When the data are first needed, naming the missing files, where they are and where they go.
    """

    def __init__(
        self,
        name: Name = "cora",
        graph: GraphOptions = GraphOptions(),  # noqa: B008 (frozen)
        normalize: bool = True,
        data_dir: str | None = None,
        download: bool = False,
        steps_per_epoch: int = 1,
        seed: int = 1,
    ) -> None:
        if name not in get_args(Name):
            raise ValueError(f"name must be one of {', '.join(get_args(Name))}, got {name}")
        super().__init__(graph, steps_per_epoch, seed)
        self.dataset = name
        self.normalize = normalize
        self.download = download
        self.directory = Path(data_dir).expanduser() / "planetoid" if data_dir else data_root("planetoid")

    def prepare_data(self) -> None:
        self._require_files()

    def read(self) -> NodeSet:
        import numpy as np

        self._require_files()  # here too: sizes are asked for before `prepare_data`
        raw = {part: _read(self.directory / f"ind.{self.dataset}.{part}") for part in PARTS}
        features, onehot, test = _assemble(raw)
        if self.normalize:
            features = _normalize_rows(features)
        nodes, known = features.shape[0], onehot.sum(axis=1) > 0
        y = torch.from_numpy(np.where(known, onehot.argmax(axis=1), -1)).long()
        train = len(raw["y"])
        heads = np.random.RandomState(self.seed).rand(VALIDATION) < 0.5
        validation = np.arange(train, train + VALIDATION)
        parts = {"train": np.arange(train), "val": validation[heads], "stop": validation[~heads], "test": test}
        links = [(node, other) for node, others in raw["graph"].items() for other in others]
        return NodeSet(
            x=_sparse_tensor(features),
            y=y,
            class_names=[f"class {index}" for index in range(onehot.shape[1])],
            masks={part: mask_of(indices, nodes) for part, indices in parts.items()},
            given=edges_from_pairs(torch.tensor(links, dtype=torch.long).T, nodes),
        )

    def _require_files(self) -> None:
        missing = [part for part in PARTS if not (self.directory / f"ind.{self.dataset}.{part}").is_file()]
        if not missing:
            return
        names = [f"ind.{self.dataset}.{part}" for part in missing]
        if not self.download:
            raise missing_files(f"Planetoid {self.dataset}", names, SOURCE, self.directory, can_download=True)
        self.directory.mkdir(parents=True, exist_ok=True)
        for part, name in zip(missing, names):
            try:
                _download(f"{RAW}/{name}", self.directory / name, GIT_IDS[self.dataset][part])
            except OSError as error:
                raise missing_files(f"Planetoid {self.dataset} ({error})", names, SOURCE, self.directory) from error


def _assemble(raw: dict[str, Any]) -> tuple[Any, Any, Any]:
    """All nodes in the order of the graph: features (CSR), one-hot classes (zeros where unknown), test indices.

    ``allx`` comes first; the rows of ``tx`` belong at the places listed in ``test.index``. Places that the list skips
    are nodes the files know only from the graph (15 in Citeseer); they get empty rows.
    """
    import numpy as np
    from scipy.sparse import lil_matrix, vstack

    test, first = raw["test.index"], raw["allx"].shape[0]
    if len(test) != raw["tx"].shape[0] or len(np.unique(test)) != len(test) or test.min() < first:
        raise ValueError(
            f"test.index must list each of the {raw['tx'].shape[0]} test nodes once, all from {first} on, "
            f"got {len(test)} entries from {test.min()}"
        )
    count = int(test.max()) + 1 - first
    features = lil_matrix((count, raw["tx"].shape[1]), dtype=np.float64)
    features[test - first] = raw["tx"]
    onehot = np.zeros((count, raw["ty"].shape[1]), dtype=np.int64)
    onehot[test - first] = raw["ty"]
    return vstack([raw["allx"], features], format="csr"), np.vstack([raw["ally"], onehot]), test


def _normalize_rows(features: Any) -> Any:
    """Rows divided by their sum; empty rows stay empty."""
    import numpy as np
    from scipy.sparse import diags_array

    total = np.asarray(features.sum(axis=1)).ravel()
    return diags_array(np.divide(1.0, total, out=np.zeros_like(total, dtype=np.float64), where=total != 0)) @ features


def _sparse_tensor(features: Any) -> Tensor:
    """SciPy matrix as a coalesced COO tensor, float32."""
    import numpy as np

    coo = features.tocoo()
    coo.sum_duplicates()
    coo.eliminate_zeros()
    index = torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64))
    values = torch.from_numpy(coo.data.astype(np.float32))
    return torch.sparse_coo_tensor(index, values, tuple(coo.shape), check_invariants=True).coalesce()


class _Unpickler(pickle.Unpickler):
    """Reads the pickles of the data set (by Python 2) and nothing else: a pickle may otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        import numpy as np
        from scipy.sparse import csr_matrix

        known = {
            ("scipy.sparse", "csr_matrix"): csr_matrix,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("collections", "defaultdict"): defaultdict,
            ("__builtin__", "list"): list,
            ("_codecs", "encode"): codecs.encode,  # how files written anew by Python 3 hold bytes
        }
        if name == "_reconstruct" and module.startswith("numpy"):
            return np.empty(0).__reduce__()[0]  # its home differs between versions of numpy
        package = "scipy.sparse" if module.startswith("scipy.sparse.") else module
        if (package, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in this file")
        return known[package, name]


def _read(path: Path) -> Any:
    """One of the eight files: CSR matrix, array, dict of lists, or test indices."""
    import numpy as np

    try:
        if path.name.endswith(".index"):
            return np.loadtxt(path, dtype=np.int64, ndmin=1)
        with path.open("rb") as file:
            return _Unpickler(file, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, AttributeError, KeyError, IndexError) as error:
        raise ValueError(f"{path} is damaged or no Planetoid file: {error}") from error


def _download(url: str, path: Path, git_id: str) -> None:
    """Fetch a file, compare it with its git object id, and only then put it in place."""
    from urllib.request import urlopen

    with urlopen(url, timeout=60) as answer:
        content = answer.read()
    found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if found != git_id:
        raise ValueError(f"{url} came with git object id {found}, expected {git_id}")
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(path)
