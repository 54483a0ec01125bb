"""Newest wins, versions only go up, and nobody waits."""

import pytest

from magistral_jax.types import Snapshot
from magistral_jax.weights.mailbox import Mailbox


def snapshot(version):
    return Snapshot(version=version, params={"version": version})


def test_an_empty_mailbox_gives_nothing():
    assert Mailbox().take() is None


def test_a_snapshot_is_taken_once():
    mailbox, sent = Mailbox(), snapshot(0)
    mailbox.put(sent)
    assert mailbox.take() is sent
    assert mailbox.take() is None


def test_the_newest_replaces_what_was_not_taken():
    mailbox = Mailbox()
    for version in (1, 2, 5):
        mailbox.put(snapshot(version))
    taken = mailbox.take()
    assert taken is not None and taken.version == 5
    assert mailbox.take() is None


@pytest.mark.parametrize("is_taken", [True, False])
@pytest.mark.parametrize("version", [3, 2])
def test_versions_never_go_back_nor_come_twice(version, is_taken):
    mailbox = Mailbox()
    mailbox.put(snapshot(3))
    if is_taken:
        mailbox.take()
    with pytest.raises(AssertionError):
        mailbox.put(snapshot(version))
