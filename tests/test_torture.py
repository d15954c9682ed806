"""The short forms of :mod:`tests.torture`: eight kills and some damage, nothing lost."""

import random

import pytest

from tests import torture


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> torture.Arena:
    return torture.Arena(tmp_path_factory.mktemp("arena"), random.Random())


@pytest.mark.parametrize(
    ("story", "times"),
    [
        (torture.kill_training, 4),
        (torture.kill_tokenising, 3),
        (torture.kill_notebook, 1),
        (torture.flip_checkpoint, 2),
        (torture.flip_run, 20),
        (torture.flip_tokens, 5),
    ],
)
def test_nothing_is_lost(story, times, arena):
    tried, losses = story(arena, times)
    assert tried <= times
    assert losses == 0


def test_counts_accumulate(tmp_path, monkeypatch):
    monkeypatch.setattr(torture, "RESULTS", tmp_path / "torture.json")
    torture.add("a fault", 3, 0)
    torture.add("a fault", 2, 1)
    torture.add("another", 1, 0)
    assert torture.counts() == {"a fault": {"tried": 5, "losses": 1}, "another": {"tried": 1, "losses": 0}}


def test_a_loss_is_seen(arena, monkeypatch):
    monkeypatch.setattr(torture, "same_run", lambda *_: False)
    assert torture.kill_training(arena, 0) == (0, 1)
