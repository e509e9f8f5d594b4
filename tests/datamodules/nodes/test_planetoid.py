"""Cora as published (needs the real files), and a small made-up set with Citeseer's defect."""

import hashlib
import pickle
import shutil
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler

import numpy as np
import pytest
import torch
from make_tiny import FIRST, SKIPPED, TEST, tiny_planetoid

from datamodules.nodes import planetoid
from datamodules.nodes.planetoid import PARTS, Planetoid
from framework.graphs.sources import GraphOptions

MASKS = ("train", "val", "stop", "test")


@pytest.fixture
def defect(tmp_path):
    return tmp_path, tiny_planetoid(tmp_path)


def ready(*args, **kwargs):
    data = Planetoid(*args, **kwargs)
    data.setup("fit")
    return data


def pairs(index):
    return {tuple(pair) for pair in index.T.tolist()}


def test_gaps_in_the_test_index_become_nodes_without_features_and_label(defect):
    folder, (x, y, graph, test) = defect
    data = ready("citeseer", data_dir=str(folder), normalize=False)
    assert (data.nodes, data.inputs, data.classes) == (FIRST + TEST + len(SKIPPED), 7, 3)
    np.testing.assert_array_equal(data.graph.x.to_dense(), x)
    np.testing.assert_array_equal(data.graph.y, y)
    assert data.graph.test.nonzero().flatten().tolist() == sorted(test)
    expected = {(min(i, j), max(i, j)) for i, others in graph.items() for j in others if i != j}
    assert pairs(data.graph.edge_index) == expected


def test_a_set_with_gaps_equals_torch_geometrics_reading(defect, tmp_path):
    folder, _ = defect
    compare_with_torch_geometric(folder, "citeseer", "CiteSeer", tmp_path)


def compare_with_torch_geometric(folder, name, theirs, tmp_path):
    from torch_geometric.datasets import Planetoid as Oracle

    raw = tmp_path / "oracle" / theirs / "raw"
    raw.mkdir(parents=True)
    for part in PARTS:
        shutil.copy(folder / "planetoid" / f"ind.{name}.{part}", raw)
    oracle = Oracle(str(tmp_path / "oracle"), theirs)[0]
    graph = ready(name, data_dir=str(folder), normalize=False).graph
    assert torch.equal(graph.x.to_dense(), oracle.x)
    known = graph.y >= 0
    assert torch.equal(graph.y[known], oracle.y[known])
    ends = oracle.edge_index[:, oracle.edge_index[0] != oracle.edge_index[1]].sort(dim=0).values  # it may be directed
    assert pairs(graph.edge_index) == pairs(ends)
    assert torch.equal(graph.train, oracle.train_mask)
    assert torch.equal(graph.test & known, oracle.test_mask & known)
    assert torch.equal(graph.val | graph.stop, oracle.val_mask)


@pytest.fixture(scope="module")
def cora(data_root_or_skip):
    return ready("cora", data_dir=str(data_root_or_skip))


def test_facts_of_cora(cora):
    graph = cora.graph
    assert (cora.nodes, cora.inputs, cora.classes) == (2708, 1433, 7)
    assert graph.x.shape == (2708, 1433)
    assert graph.x.is_sparse
    assert graph.x._nnz() == 49_216
    assert graph.edge_index.shape == (2, 5278)
    assert len(graph.edge_index.unique()) == 2708  # no isolated node
    assert graph.edge_weight.unique().tolist() == [1]
    assert torch.bincount(graph.y[graph.train]).tolist() == [20] * 7
    assert int(graph.test.sum()) == 1000
    torch.testing.assert_close(graph.x.to_dense().sum(dim=1), torch.ones(2708))


def test_cora_equals_torch_geometrics_reading(data_root_or_skip, tmp_path):
    compare_with_torch_geometric(data_root_or_skip, "cora", "Cora", tmp_path)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_coin_flips_share_out_the_validation_nodes(defect, seed):
    folder, _ = defect
    graph = ready("citeseer", data_dir=str(folder), seed=seed).graph
    assert (graph.val | graph.stop).nonzero().flatten().tolist() == list(range(12, 512))
    assert not (graph.val & graph.stop).any()
    assert abs(int(graph.val.sum()) - 250) < 4 * np.sqrt(125)
    again, other = (ready("citeseer", data_dir=str(folder), seed=seed + step).graph for step in (0, 1))
    assert torch.equal(graph.val, again.val)
    assert not torch.equal(graph.val, other.val)
    assert torch.equal(graph.test, other.test)


def test_rows_are_normalised_and_empty_rows_stay_empty(defect):
    folder, (x, *_) = defect
    total = ready("citeseer", data_dir=str(folder)).graph.x.to_dense().sum(dim=1)
    torch.testing.assert_close(total, torch.from_numpy(x.any(axis=1)).float())


def test_edges_can_be_retained_in_part_or_discarded(defect):
    folder, _ = defect
    whole = pairs(ready("citeseer", data_dir=str(folder)).graph.edge_index)
    part = pairs(ready("citeseer", data_dir=str(folder), graph=GraphOptions(retained=25)).graph.edge_index)
    assert part < whole
    assert abs(len(part) - len(whole) / 4) < 4 * np.sqrt(len(whole) * 3 / 16)
    assert ready("citeseer", data_dir=str(folder), graph=GraphOptions(source="empty")).graph.edge_index.shape[1] == 0


def test_labels_of_test_nodes_reach_nothing_but_y(defect):
    folder, _ = defect
    honest = ready("citeseer", data_dir=str(folder), graph=GraphOptions(source="knn", k=3)).graph
    path = folder / "planetoid" / "ind.citeseer.ty"
    path.write_bytes(pickle.dumps(np.roll(pickle.loads(path.read_bytes()), 1, axis=1), protocol=2))
    lied = ready("citeseer", data_dir=str(folder), graph=GraphOptions(source="knn", k=3)).graph
    assert torch.equal(honest.x.to_dense(), lied.x.to_dense())
    assert torch.equal(honest.edge_index, lied.edge_index)
    for mask in MASKS:
        assert torch.equal(getattr(honest, mask), getattr(lied, mask))
    assert not torch.equal(honest.y[honest.test], lied.y[honest.test])
    assert torch.equal(honest.y[~honest.test], lied.y[~honest.test])


def test_missing_files_are_named_with_source_and_destination(tmp_path):
    tiny_planetoid(tmp_path, "pubmed")
    for part in ("tx", "graph"):
        (tmp_path / "planetoid" / f"ind.pubmed.{part}").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        _ = Planetoid("pubmed", data_dir=str(tmp_path)).inputs
    message = str(caught.value)
    assert "\n" not in message
    for word in ("ind.pubmed.tx, ind.pubmed.graph;", "github.com/kimiyoung/planetoid", str(tmp_path / "planetoid")):
        assert word in message
    assert "ind.pubmed.ty" not in message


def test_data_dir_defaults_to_the_environment(defect, monkeypatch):
    folder, _ = defect
    monkeypatch.setenv("FULGURITE_DATA", str(folder))
    assert Planetoid("citeseer").inputs == 7


@pytest.mark.parametrize(
    ("part", "content"),
    [
        ("graph", b"not a pickle"),
        ("x", b""),
        ("x", pickle.dumps(print)),  # a pickle that names a function is refused, not run
        ("test.index", b"five\n"),
        ("test.index", b"520\n520\n"),
    ],
)
def test_damaged_files_are_named(defect, part, content):
    folder, _ = defect
    (folder / "planetoid" / f"ind.citeseer.{part}").write_bytes(content)
    with pytest.raises(ValueError, match=part.replace(".", r"\.")) as caught:
        _ = Planetoid("citeseer", data_dir=str(folder)).inputs
    assert "\n" not in str(caught.value)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"name must be one of cora, citeseer, pubmed, got core"):
        Planetoid("core")


# ------------------------------------------------------------------------------------------------------------ download


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A local server in place of the official one, with the ids of its own files."""
    tiny_planetoid(tmp_path / "served")
    folder = tmp_path / "served/planetoid"
    http = HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(planetoid, "RAW", f"http://127.0.0.1:{http.server_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    ids = {}
    for part in PARTS:
        content = (folder / f"ind.citeseer.{part}").read_bytes()
        ids[part] = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    monkeypatch.setitem(planetoid.GIT_IDS, "citeseer", ids)
    yield folder
    http.shutdown()
    http.server_close()
    thread.join()


def test_missing_files_are_downloaded_and_verified(server, tmp_path):
    data = Planetoid("citeseer", data_dir=str(tmp_path / "new"), download=True)
    data.prepare_data()
    data.setup("fit")
    assert data.graph.nodes == FIRST + TEST + len(SKIPPED)
    assert sorted(path.name for path in (tmp_path / "new" / "planetoid").iterdir()) == sorted(
        f"ind.citeseer.{part}" for part in PARTS
    )


def test_a_download_that_differs_is_refused_and_not_kept(server, tmp_path):
    (server / "ind.citeseer.tx").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"ind\.citeseer\.tx came with git object id"):
        Planetoid("citeseer", data_dir=str(tmp_path / "new"), download=True).prepare_data()
    assert not (tmp_path / "new" / "planetoid" / "ind.citeseer.tx").exists()


def test_a_server_without_the_file_ends_in_the_message_for_missing_files(server, tmp_path):
    (server / "ind.citeseer.x").unlink()
    with pytest.raises(FileNotFoundError, match=r"404.*ind\.citeseer\.x"):
        Planetoid("citeseer", data_dir=str(tmp_path / "new"), download=True).prepare_data()


def test_the_published_ids_are_those_of_the_real_files(data_root_or_skip):
    for part in PARTS:
        content = (data_root_or_skip / "planetoid" / f"ind.cora.{part}").read_bytes()
        assert hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest() == planetoid.GIT_IDS["cora"][part]
