"""Private clients as nodes of a real deployment: their own budgets, ledgers that stay, reasons that do not travel."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from deployment import APP, Deployment

ROOT = Path(__file__).resolve().parents[3]
SHARED = (
    "-c base.yaml --federation.clients 2 --federation.rounds 2 --threads 1 --federation.timeout 120 "
    "--federation.privacy.epsilon 2 --federation.privacy.delta 0.01 --federation.privacy.batch_size 4 "
    "--federation.fail_fast false"
)
pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.mark.skipif(
    not (shutil.which("openssl") and shutil.which("ssh-keygen")), reason="certificates need openssl and ssh-keygen"
)
def test_nodes_keep_ledgers_of_their_own_and_their_reasons_to_themselves(project, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("deployment")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    project.write("pyproject.toml", APP)
    deployment = Deployment(folder, ROOT)
    own = (
        "--federation.privacy.epsilon 3",
        "--federation.privacy.epsilon 0.000123 --federation.privacy.delta 0.000001",  # which no noise keeps
    )
    try:
        deployment.start()
        for k, arguments in enumerate(own):
            deployment.key(f"node{k}")
            deployment.node(f"node{k}", f'{k} arguments="{arguments}"')
        run = deployment.flwr_run(
            project.folder, f"{SHARED} --trainer.default_root_dir {project.folder}/runs --name own"
        )
        assert run.wait(400) == 0, deployment.log("run")
        lines = (project.folder / "runs/own/0/rounds.jsonl").read_text().splitlines()
        for record in [json.loads(line)["clients"] for line in lines[1:]]:
            assert [client["outcome"] for client in record] == ["used", "failed"]
            assert "private training failed; the reason is in the client's log" in record[1]["detail"]
        for told in (*lines, deployment.log("run"), deployment.log("superlink")):
            assert "000123" not in told
        assert "no noise keeps epsilon=0.000123" in deployment.log("node1")
        (ledger,) = (folder / "state" / "fulgurite" / "privacy").glob("*/client-*.json")
        stored = json.loads(ledger.read_text())
        assert ledger.name == "client-0.json"
        assert (stored["epsilon"], stored["planned"]) == (3.0, sum(stored["steps"]))
    finally:
        deployment.stop()
