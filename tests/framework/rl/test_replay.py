from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.rl.replay import ReplayBuffer


def numbered(first, count, components=2):
    """Transitions that say which they are."""
    number = torch.arange(first, first + count, dtype=torch.float32)
    return (
        torch.stack([number, -number], 1), number[:, None], torch.stack([number, 10 * number], 1)[:, :components],
        torch.stack([number + 1, -number - 1], 1), number % 3 == 0,
    )  # fmt: skip


def filled(capacity=8, count=5, **options):
    buffer = ReplayBuffer(capacity, 2, 1, ("task", "effort"), seed=3, **options)
    if count:
        buffer.add(*numbered(0, count))
    return buffer


def frozen():
    buffer = filled(count=0)
    buffer.keep_frozen()
    return buffer


def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(0, 9), max_size=8))
def test_the_newest_transitions_are_kept_in_order(capacity, chunks):
    buffer, added = filled(capacity, 0), 0
    for chunk in chunks:
        chunk = min(chunk, capacity)
        buffer.add(*numbered(added, chunk))
        added += chunk
    kept = torch.arange(max(0, added - capacity), added, dtype=torch.float32)
    columns = buffer.columns()
    assert len(buffer) == len(kept)
    assert buffer.added == added
    for name, expected in zip(columns, numbered(int(kept[0]), len(kept)) if added else numbered(0, 0)):
        assert torch.equal(columns[name], expected)


def test_a_batch_holds_whole_transitions_and_all_are_drawn():
    buffer = filled()
    batch = buffer.sample(400)
    number = batch["action"][:, 0]
    assert set(number.tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}
    assert torch.equal(batch["observation"], torch.stack([number, -number], 1))
    assert torch.equal(batch["next_observation"], torch.stack([number + 1, -number - 1], 1))
    assert torch.equal(batch["terminated"], number % 3 == 0)
    assert torch.equal(batch["reward"], 11 * number)
    assert abs(float((number == 2).float().mean()) - 0.2) < 0.08


def test_new_weights_price_old_and_new_experience_at_once():
    buffer = filled(weights=[1.0, 0.0])
    before = {name: column.clone() for name, column in buffer.columns().items()}
    assert torch.equal((batch := buffer.sample(50))["reward"], batch["action"][:, 0])
    buffer.weights = torch.tensor([-2.0, 0.5])
    buffer.add(*numbered(5, 2))
    batch = buffer.sample(200)
    torch.testing.assert_close(batch["reward"], 3 * batch["action"][:, 0], rtol=1e-6, atol=1e-6)
    assert all(torch.equal(buffer.columns()[name][:5], before[name]) for name in before)  # nothing was rewritten


def test_frozen_rewards_are_those_of_their_time():
    buffer = filled(count=0, weights=[1.0, 0.0])
    buffer.keep_frozen()
    buffer.add(*numbered(0, 3))
    buffer.weights = [0.0, 1.0]
    buffer.add(*numbered(3, 2))
    batch = buffer.sample(100)
    assert torch.equal(batch["reward"], 10 * batch["action"][:, 0])
    buffer.use_frozen = True
    batch = buffer.sample(100)
    number = batch["action"][:, 0]
    assert torch.equal(batch["reward"], torch.where(number < 3, number, 10 * number))
    again = filled(count=0)
    again.load_state_dict(saved(buffer.state_dict()))
    assert torch.equal(again.sample(50)["reward"], buffer.sample(50)["reward"])


@pytest.mark.parametrize(("share", "new"), [(0.25, 16), (0.0, 0), (1.0, 64), (0.5, 32)])
def test_a_share_of_the_batch_is_new(share, new):
    buffer = filled(capacity=10, count=8)
    buffer.mark()
    buffer.new_share = share
    assert len(buffer.sample(64)["action"]) == 64  # nothing is new yet: all alike
    buffer.add(*numbered(8, 5))  # overwrites 0, 1 and 2
    number = buffer.sample(64)["action"][:, 0]
    assert int((number >= 8).sum()) == new
    assert set(number.tolist()) <= {float(each) for each in range(3, 13)}
    buffer.add(*numbered(13, 8))  # nothing is old any more
    assert float(buffer.sample(64)["action"].min()) >= 11


def test_cleared_is_empty_but_as_asked_for():
    buffer = filled(weights=[1.0, 2.0])
    buffer.clear()
    assert len(buffer) == 0
    assert buffer.weights.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="the replay buffer is empty"):
        buffer.sample(1)


@pytest.mark.parametrize("count", [5, 13])
def test_a_checkpoint_goes_on_exactly(count):
    buffer = filled(capacity=8, count=0)
    for first in range(count):
        buffer.add(*numbered(first, 1))
        if first == count - 3:
            buffer.mark()
    buffer.new_share, buffer.weights = 0.25, [0.5, 2.0]
    buffer.sample(7)
    state = saved(buffer.state_dict())
    assert len(state["columns"]["action"]) == min(count, 8)
    again = filled(capacity=8, count=0)
    again.load_state_dict(state)
    for each in (buffer, again):
        each.add(*numbered(count, 3))
    for name, column in buffer.columns().items():
        assert torch.equal(column, again.columns()[name])
    for _ in range(3):
        ours, theirs = buffer.sample(16), again.sample(16)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_buffer_that_is_not_full_may_grow():
    buffer, larger = filled(capacity=6), filled(capacity=20, count=0)
    larger.load_state_dict(saved(buffer.state_dict()))
    assert torch.equal(larger.columns()["action"], buffer.columns()["action"])
    assert torch.equal(larger.sample(9)["reward"], buffer.sample(9)["reward"])


def test_what_is_saved_of_a_large_buffer_is_small():
    file = io.BytesIO()
    torch.save(ReplayBuffer(100_000, 2, 1).state_dict(), file)
    assert len(file.getvalue()) < 20_000


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: ReplayBuffer(0, 2, 1), "capacity must be at least 1, got 0"),
        (lambda: ReplayBuffer(4, 2, 1, ("a", "a")), "components must be names that differ"),
        (lambda: ReplayBuffer(4, 2, 1, ("a", "b"), [1.0]), "weights must be 2 finite numbers, for a, b"),
        (lambda: setattr(filled(), "weights", [float("nan"), 1]), "weights must be 2 finite numbers"),
        (lambda: setattr(filled(), "new_share", 1.5), r"new_share must be in \[0, 1\] or null, got 1.5"),
        (lambda: filled(4, 5), "5 transitions at once do not fit into a buffer of 4"),
        (lambda: filled().add(*numbered(0, 2, 1)), r"components must have the shape \(2, 2\), got \(2, 1\)"),
        (lambda: filled().keep_frozen(), "keep_frozen must be called before the first transition"),
        (
            lambda: frozen().load_state_dict(filled().state_dict()),
            "keeps stored rewards, but the checkpoint's has none",
        ),
        (lambda: filled(5).load_state_dict(filled(6, 6).state_dict()), "capacity of the replay buffer is 5"),
    ],
)
def test_bad_input(act, message):
    with pytest.raises(ValueError, match=message):
        act()


def test_frozen_rewards_need_to_be_kept():
    buffer = filled()
    buffer.use_frozen = True
    with pytest.raises(ValueError, match="use_frozen needs keep_frozen"):
        buffer.sample(1)
