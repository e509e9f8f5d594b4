"""Every acquisition function by name, through the steps that whoever runs over a pool takes; and bad input."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from framework.active.acquisition import ACQUISITIONS, Acquisition, PoolScores, Ranked, acquisition
from framework.active.decisions import Decisions, decisions_and_embedding_of, decisions_of
from framework.active.scores import entropy, gradient_errors

ITEMS = 80


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


@pytest.fixture(scope="module")
def inputs():
    return torch.randn(ITEMS, 5, generator=torch.Generator().manual_seed(0))


def buy(how, network, inputs, budget=9.0, costs=None, seed=0, labelled=10):
    """Global indices bought of all items but the first ``labelled``."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    indices = torch.arange(labelled, len(inputs))
    pool = PoolScores(indices, (torch.ones(len(inputs)) if costs is None else costs)[indices])
    with torch.inference_mode():
        if how.passes:
            network.train(how.passes > 1)
            pool = replace(pool, scores=how.score(decisions_of(network, inputs[indices]) for _ in range(how.passes)))
        pool = pool.take(how.shortlist(pool, budget, generator))
        network.eval()
        if how.embedding:
            decisions, embeddings = decisions_and_embedding_of(network, inputs[pool.indices])
            pool = replace(pool, embeddings=embeddings)
            if how.embedding == "gradient":
                pool = replace(pool, errors=gradient_errors(decisions))
        if how.needs_labelled:
            pool = replace(pool, labelled=decisions_and_embedding_of(network, inputs[:labelled])[1])
    return pool.indices[how.select(pool, budget, generator)]


@pytest.mark.parametrize("name", ACQUISITIONS)
@given(st.integers(1, 200), st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_every_function_buys_its_budget_once_and_again_the_same(name, network, inputs, budget, seed):
    costs = torch.randint(1, 9, (ITEMS,), generator=torch.Generator().manual_seed(seed))
    how = acquisition(name)
    bought = buy(how, network, inputs, budget, costs, seed)
    assert bought.dtype == torch.int64
    assert len(bought.unique()) == len(bought) >= 1
    assert bought.min() >= 10
    spent, everything = costs[bought].sum(), len(bought) == ITEMS - 10
    if name == "submodular":
        rest = torch.ones(ITEMS, dtype=torch.bool)
        rest[:10], rest[bought] = False, False
        assert spent <= budget or len(bought) == 1
        assert everything or spent + costs[rest].max() > budget
    else:
        assert costs[bought[:-1]].sum() < budget
        assert everything or spent >= budget
    assert torch.equal(bought, buy(how, network, inputs, budget, costs, seed))


def test_what_each_function_needs():
    needs = {}
    for name in ACQUISITIONS:
        how = acquisition(name, mc_samples=7)
        needs[name] = (how.passes, how.embedding, how.needs_labelled)
        assert how.needs_model == (name != "random")
        assert how.name == name
    assert needs == {
        "random": (0, None, False),
        "longest": (1, None, False),
        "lc": (1, None, False),
        "mnlp": (1, None, False),
        "margin": (1, None, False),
        "entropy": (1, None, False),
        "bald": (7, None, False),
        "bald_mi": (7, None, False),
        "submodular": (1, "embedding", False),
        "badge": (0, "gradient", False),
        "coreset": (0, "embedding", True),
    }


def test_ranked_functions_buy_the_largest_scores_first(network, inputs):
    pool = PoolScores(torch.tensor([2, 5, 7, 11]), torch.ones(4), torch.tensor([0.1, 0.9, 0.1, 0.9]))
    for name in ("longest", "lc", "mnlp", "margin", "entropy", "bald", "bald_mi"):
        assert pool.indices[acquisition(name).select(pool, 3, torch.Generator())].tolist() == [5, 11, 2]


def test_random_depends_on_the_generator_alone(network, inputs):
    how = acquisition("random")
    pool = PoolScores(torch.arange(100), torch.ones(100))
    first, second = (how.select(pool, 10, torch.Generator().manual_seed(seed)).tolist() for seed in (0, 1))
    assert first == how.select(pool, 10, torch.Generator().manual_seed(0)).tolist()
    assert first != second
    counts = torch.zeros(100)
    for seed in range(500):
        counts[how.select(pool, 10, torch.Generator().manual_seed(seed))] += 1
    assert counts.min() > 20  # 50 expected, standard deviation 7
    assert counts.max() < 90
    with pytest.raises(NotImplementedError, match="'random' needs no scores"):
        how.score([])


def test_submodular_compares_the_most_uncertain_worth_so_many_budgets():
    pool = PoolScores(torch.arange(10), torch.full((10,), 2), torch.arange(10.0))
    generator = torch.Generator()
    assert acquisition("submodular", breadth=3).shortlist(pool, 4, generator).tolist() == [4, 5, 6, 7, 8, 9]
    assert acquisition("submodular", breadth=3, candidates=4).shortlist(pool, 4, generator).tolist() == [6, 7, 8, 9]
    assert acquisition("submodular", breadth=3).shortlist(pool, 400, generator).tolist() == list(range(10))


def test_submodular_prefers_what_stands_for_many_uncertain_items():
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    pool = PoolScores(torch.arange(4), torch.ones(4), torch.tensor([0.5, 0.5, 0.5, 0.9]), embeddings)
    how = acquisition("submodular")
    assert how.select(pool, 1, torch.Generator()).tolist() == [0]
    assert how.select(pool, 2, torch.Generator()).tolist() == [0, 3]
    opposite = replace(pool, embeddings=-embeddings * torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]))
    assert how.select(opposite, 3, torch.Generator()).tolist() == [0, 3, 1]  # the second now stands for itself alone


@pytest.mark.parametrize("name", ["badge", "coreset"])
def test_embeddings_of_random_candidates_are_enough_where_it_is_said(name):
    pool = PoolScores(torch.arange(100), torch.ones(100))
    assert len(acquisition(name).shortlist(pool, 5, torch.Generator())) == 100
    drawn = acquisition(name, candidates=20).shortlist(pool, 5, torch.Generator().manual_seed(1))
    assert len(drawn.unique()) == 20
    assert drawn.tolist() == sorted(drawn.tolist())
    assert not torch.equal(drawn, acquisition(name, candidates=20).shortlist(pool, 5, torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("name", ["submodular", "badge", "coreset"])
def test_too_few_candidates_for_the_budget_are_refused(name):
    pool = PoolScores(torch.arange(100), torch.ones(100), torch.rand(100))
    with pytest.raises(ValueError, match=r"^candidates=5 items cost 5 together, less than the budget of 9: allow more"):
        acquisition(name, candidates=5).shortlist(pool, 9, torch.Generator())
    rest = pool.take(torch.arange(5))
    assert len(acquisition(name, candidates=5).shortlist(rest, 9, torch.Generator())) == 5  # there are no more


MODULE = """
import torch
from framework.active.acquisition import Ranked

def least(decisions):
    return -decisions.log_probs[:, 0, 0]

def matrix(decisions):
    return decisions.log_probs[:, 0]

def number(decisions):
    return 1.0

class Thing: pass

disagreement = Ranked("disagreement", lambda passes: torch.stack([d.log_probs[:, 0, 0] for d in passes]).std(0), 4)
constant = 3
"""


@pytest.fixture
def users(tmp_path, monkeypatch):
    (tmp_path / "users_scores.py").write_text(MODULE)
    (tmp_path / "users_broken.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("users")
def test_a_function_of_the_users_own_by_dotted_path(network, inputs):
    how = acquisition("users_scores.least")
    assert (how.name, how.passes, how.embedding) == ("users_scores.least", 1, None)
    expected = network.eval()(inputs[10:]).log_softmax(1)[:, 0].argsort()[:9] + 10
    assert buy(how, network, inputs).tolist() == expected.tolist()
    assert acquisition("framework.active.scores.entropy").function is entropy


@pytest.mark.usefixtures("users")
def test_an_acquisition_of_the_users_own_by_dotted_path(network, inputs):
    how = acquisition("users_scores.disagreement")
    assert isinstance(how, Ranked)
    assert how.passes == 4
    assert len(buy(how, network, inputs)) == 9


@pytest.mark.usefixtures("users")
@pytest.mark.parametrize(("name", "got"), [("matrix", r"shape \(80, 3\)"), ("number", "float")])
def test_a_function_that_gives_no_number_an_item_is_told_so(name, got, network, inputs):
    with pytest.raises(ValueError, match=rf"^acquisition 'users_scores.{name}' must return .*\(batch,\), got {got}$"):
        acquisition(f"users_scores.{name}").score([decisions_of(network, inputs)])


BAD = {
    "mnpl": r"acquisition must be one of random, longest, lc, mnlp, margin, entropy, bald, bald_mi, submodular, badge, "
    r"coreset, or the dotted path of a function, got 'mnpl'; did you mean mnlp\?",
    "": "acquisition must be one of random, .*, got ''",
    ".": "acquisition must be one of random, .*, got '.'",
    "no_such_package.score": "'no_such_package.score' cannot be imported: No module named 'no_such_package'",
    "users_scores.missing": "'users_scores.missing' cannot be imported: .*missing",
    "users_broken.score": "'users_broken.score' cannot be imported: No module named 'no_such_package'",
    "users scores.least": "'users scores.least' cannot be imported: ",
    "users_scores.constant": "'users_scores.constant' must be a function from Decisions to scores, or .*, got int",
    "users_scores.Thing": "'users_scores.Thing' must be a function from Decisions to scores, or .*, got a class",
}


@pytest.mark.usefixtures("users")
@pytest.mark.parametrize(("name", "says"), BAD.items(), ids=[name or "nothing" for name in BAD])
def test_a_name_that_leads_to_no_function_is_refused_in_a_line(name, says):
    with pytest.raises(ValueError, match=says) as raised:
        acquisition(name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "bald", "mc_samples": 1}, "mc_samples must be at least 2 for acquisition 'bald', got 1"),
        ({"name": "bald_mi", "mc_samples": 0}, "mc_samples must be at least 2 for acquisition 'bald_mi', got 0"),
        ({"name": "badge", "candidates": 0}, "candidates must be at least 1 or null, got 0"),
        ({"name": "submodular", "breadth": 0.5}, "breadth must be at least 1, got 0.5"),
        ({"name": "submodular", "breadth": float("nan")}, "breadth must be at least 1, got nan"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, says):
    with pytest.raises(ValueError, match=f"^{says}$"):
        acquisition(**arguments)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"costs": torch.ones(2)}, "costs must have one entry an item, got 2 for 3 items"),
        ({"scores": torch.ones(4)}, "scores must have one entry an item, got 4 for 3 items"),
        ({"indices": torch.tensor([3, 3, 9])}, "indices must ascend"),
        ({"indices": torch.tensor([3, 9, 5])}, "indices must ascend"),
        ({"costs": torch.tensor([1.0, 0.0, 2.0])}, "costs must be positive, got 0.0 for item 5"),
        ({"costs": torch.tensor([1.0, 2.0, torch.nan])}, "costs must be positive, got nan for item 9"),
        ({"scores": torch.tensor([1.0, torch.nan, 2.0])}, "the score of item 5 is NaN: has training diverged?"),
        ({"embeddings": torch.full((3, 2), torch.inf)}, "embeddings of the acquisition function are not finite"),
        ({"labelled": torch.full((1, 2), torch.nan)}, "labelled of the acquisition function are not finite"),
    ],
)
def test_a_pool_that_does_not_fit_together_is_refused(fields, says):
    sound = {"indices": torch.tensor([3, 5, 9]), "costs": torch.ones(3)}
    PoolScores(**sound)
    with pytest.raises(ValueError, match=f"^{says}"):
        PoolScores(**{**sound, **fields})


@pytest.mark.parametrize(
    ("name", "lacks"), [("mnlp", "scores"), ("submodular", "embeddings"), ("badge", "errors"), ("coreset", "labelled")]
)
def test_a_pool_without_what_the_function_needs_is_refused(name, lacks):
    known = {"scores": torch.rand(3), "embeddings": torch.rand(3, 2), "errors": torch.rand(3, 2)}
    known |= {"labelled": torch.rand(1, 2)}
    known.pop(lacks)
    with pytest.raises(ValueError, match=f"^acquisition '{name}' needs {lacks} of the pool, got None$"):
        acquisition(name).select(PoolScores(torch.arange(3), torch.ones(3), **known), 2, torch.Generator())


def test_an_infinite_score_is_bought_first():
    """-log P(y*|x) of a decision that the model gives no probability."""
    log_probs = torch.tensor([[[0.0, -torch.inf]], [[0.5, 0.5]]]).log_softmax(2)
    decisions = Decisions(log_probs, torch.tensor([[1], [1]]), torch.ones(2, 1, dtype=torch.bool))
    how = acquisition("mnlp")
    pool = PoolScores(torch.arange(2), torch.ones(2), how.score([decisions]))
    assert how.select(pool, 1, torch.Generator()).tolist() == [0]


def test_the_base_is_random():
    assert type(acquisition("random")) is Acquisition
