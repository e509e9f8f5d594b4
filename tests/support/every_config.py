"""All configurations and overlays there are, found by glob, and how each runs on tiny data."""

from __future__ import annotations

from importlib.util import find_spec

from framework.configuration import read, shipped

ROOT = shipped()
FILES = {file.relative_to(ROOT).with_suffix("").as_posix(): file for file in sorted(ROOT.rglob("*.yaml"))}
OVERLAYS = [name for name in FILES if name.startswith("overlays/")]
FEDERATIONS = [name for name in FILES if name.startswith("federation/")]
#: On Python 3.13 there is no dm_control.
LACKING = set() if find_spec("dm_control") else {"reward_curriculum/cartpole"}
CONFIGS = [name for name in FILES if not name.startswith(("overlays/", "federation/")) and name not in LACKING]

#: Where a user names a file of their own, one of ``make_tiny.everything`` in the working folder. Data sets with a
#: place of their own are found by FULGURITE_DATA and need no entry. Environments are data, too: a few steps of them.
PLANTS = ["--data.path", "plants.csv", "--data.label", "species", "--data.id_column", "plant"]
ENCODER = ["--model.encoder", "encoder", "--model.pretrained", "false"]
FEW_STEPS = ["--data.learning_starts", "300", "--data.eval_episodes", "2"]
OWN_FILES = {
    "active_ner/paper_conll2003": ["--data.path", "btc"],
    "active_ner/transformer": ENCODER,
    "classifier/image_folder": ["--data.path", "shapes"],
    "classifier/table": PLANTS,
    "lds/table": PLANTS,
    **dict.fromkeys(
        [
            "reward_curriculum/cartpole",
            "reward_curriculum/halfcheetah",
            "reward_curriculum/halfcheetah_sac",
            "reward_curriculum/hopper",
            "reward_curriculum/navigation",
            "rl/halfcheetah_sac",
            "rl/hopper_sac",
            "rl/pendulum_sac",
            "rl/pendulum_td3",
        ],
        FEW_STEPS,
    ),
    "selective_layers/trec_label_shift": [*ENCODER, "--data.max_pieces", "64"],
    "text/ag_news": [*ENCODER, "--data.max_pieces", "64"],
    "text/trec": [*ENCODER, "--data.max_pieces", "64"],
}


def kind(name: str) -> tuple[str, str, str]:
    """Method, module and data of a configuration."""
    values = read(FILES[name])
    return values["about"]["method"], values["model"]["class_path"], values["data"]["class_path"]


def one_of_each(*parts: int) -> list[str]:
    """The first configuration of each combination of method (0), module (1) and data (2)."""
    found: dict[tuple[str, ...], str] = {}
    for name in CONFIGS:
        found.setdefault(tuple(kind(name)[part] for part in parts), name)
    return list(found.values())
