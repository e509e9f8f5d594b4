"""The taxonomy of failures: what the file holds, and what is said of a wrong one."""

from __future__ import annotations

import pytest
import yaml

from framework.errors import ConfigurationError
from framework.reliability.taxonomy import FILE, read_taxonomy

#: Table I as far as it is known, unverified: user program, system software, hardware; ? is doubtful, - is rare.
TABLE = {
    "gpu_memory_errors": "h", "nvlink": "h", "ib_link": "h", "main_memory_errors": "h", "pcie": "h",
    "gpu_unavailable": "sh", "gpu_driver": "sh", "ethernet_link": "sh",
    "file_system_mounts": "u?sh", "system_services": "u?sh", "nccl_timeout": "ush", "out_of_memory": "us-",
}  # fmt: skip


def test_the_cells_are_those_of_the_notes_and_marked_as_unverified():
    taxonomy = read_taxonomy()
    assert set(taxonomy.domains) == {"user", "system", "hardware"}
    marks = {"likely": "", "doubtful": "?", "rare": "-"}
    found = {
        name: "".join(domain[0] + marks[how] for domain, how in symptom.domains.items())
        for name, symptom in taxonomy.symptoms.items()
        if symptom.mark == "unverified"
    }
    assert found == TABLE
    assert not [symptom for symptom in taxonomy.symptoms.values() if symptom.mark == "paper"]  # nobody has read it


def test_symptoms_rule_domains_out():
    taxonomy = read_taxonomy()
    assert taxonomy.candidates("nccl_timeout") == {"user", "system", "hardware"}
    assert taxonomy.candidates("nccl_timeout", "ib_link") == {"hardware"}
    assert taxonomy.candidates("illegal_memory_access", "pcie") == set()
    with pytest.raises(ConfigurationError, match="symptom nccl_timout: not in the taxonomy; did you mean nccl_timeout"):
        taxonomy.candidates("pcie", "nccl_timout")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("sources"), "expected the keys domains, sources, symptoms; .*: sources"),
        (lambda t: t.update(symptoms=[]), r"symptoms: expected a mapping, got \[\]"),
        (lambda t: t["domains"].update(user=3), "domains.user: expected words, got 3"),
        (lambda t: t["symptoms"]["pcie"].update(colour="red"), "symptoms.pcie: expected the keys .*: colour"),
        (lambda t: t["symptoms"]["pcie"].pop("mark"), "symptoms.pcie: expected the keys .*: mark"),
        (lambda t: t["symptoms"]["pcie"].update(title=""), "symptoms.pcie.title: expected words, got ''"),
        (lambda t: t["symptoms"]["pcie"].update(domains={}), "pcie.domains: at least one of user, system, hardware"),
        (lambda t: t["symptoms"]["pcie"]["domains"].update(hardwear="likely"), "one of user, .*did you mean hardware"),
        (lambda t: t["symptoms"]["pcie"]["domains"].update(user=True), "domains.user: expected one of likely, .*True"),
        (lambda t: t["symptoms"]["pcie"].update(transience="often"), "pcie.transience: expected one of transient"),
        (lambda t: t["sources"].update({1: "a book"}), "sources: expected names, got 1"),
        (lambda t: t["symptoms"].update({7: t["symptoms"]["pcie"]}), "symptoms: expected names, got 7"),
        (lambda t: t["symptoms"]["pcie"].update(mark="heard"), "pcie.mark: expected one of paper, .*'heard'"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path, change, words):
    values = yaml.safe_load(FILE.read_text())
    change(values)
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(ConfigurationError, match=f"mine.yaml: .*{words}|mine.yaml: {words}"):
        read_taxonomy(file)


@pytest.mark.parametrize("text", [None, "a: [", "just words", "\xff"])
def test_a_file_that_is_none(tmp_path, text):
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigurationError, match=r"mine\.yaml"):
        read_taxonomy(file)
