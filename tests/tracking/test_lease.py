"""The lock that machines share, in a real registry."""

import threading
import time

import pytest
from mlflow import MlflowClient

from drilldown import process
from drilldown.errors import StoreError
from drilldown.tracking import lease

NAME = "digits-cnn"


@pytest.fixture
def expires_soon(monkeypatch):
    monkeypatch.setattr(lease, "SECONDS", 2)
    monkeypatch.setattr(lease, "MARGIN_SECONDS", 1)


def locks(store):
    return [model.name for model in store.search_registered_models()]


def leave(store, number, *, process="elsewhere:/there/x", owner="another"):
    """A lock that another machine has created, and that nobody deletes."""
    tags = {"drilldown.lock.owner": owner, "drilldown.process": process}
    store.create_registered_model(f"{lease.PREFIX}{NAME}.{number}", tags)


def test_it_exists_only_while_it_is_held(store):
    with lease.hold(NAME) as held:
        assert locks(store) == [f"{lease.PREFIX}{NAME}.1"]
        held.confirm()
        with lease.hold("mnist-cnn"):
            assert len(locks(store)) == 2
    assert locks(store) == []


def test_it_is_deleted_when_the_work_fails(store):
    with pytest.raises(RuntimeError), lease.hold(NAME):
        raise RuntimeError
    assert locks(store) == []


@pytest.mark.slow
def test_one_that_is_held_is_waited_for_with_one_line(store, capsys):
    leave(store, 1)
    threading.Timer(1, MlflowClient().delete_registered_model, [f"{lease.PREFIX}{NAME}.1"]).start()
    began = time.monotonic()
    with lease.hold(NAME):
        assert 0.9 < time.monotonic() - began < lease.SECONDS / 2
    assert capsys.readouterr().err == (
        "waiting: a command on elsewhere changes digits-cnn; if it is gone, its lock expires after 300 s\n"
    )


@pytest.mark.slow
def test_one_that_has_expired_is_taken_over(store, expires_soon):
    leave(store, 7)
    began = time.monotonic()
    with lease.hold(NAME):
        assert time.monotonic() - began > 1.9
        assert locks(store) == [f"{lease.PREFIX}{NAME}.8"]
    assert locks(store) == []


@pytest.mark.slow
def test_one_of_another_user_that_has_expired_may_stay(store, expires_soon, monkeypatch):
    leave(store, 7)
    time.sleep(2)
    delete = MlflowClient.delete_registered_model

    def forbid(client, name):
        if name.endswith(".7"):
            raise lease.MlflowException("Permission denied")
        delete(client, name)

    monkeypatch.setattr(MlflowClient, "delete_registered_model", forbid)
    for _ in range(2):
        with lease.hold(NAME):
            assert len(locks(store)) == 2
    assert locks(store) == [f"{lease.PREFIX}{NAME}.7"]


def test_one_of_a_dead_process_of_this_machine_is_taken_over_at_once(store):
    machine, folder = process.liveness_lock().rpartition("/")[0].split(":")
    leave(store, 1, process=f"{machine}:{folder}/gone")
    began = time.monotonic()
    with lease.hold(NAME):
        assert time.monotonic() - began < lease.SECONDS / 2


def test_a_lock_whose_creation_was_answered_late_is_known_by_its_owner(store, monkeypatch):
    create = MlflowClient.create_registered_model

    def create_twice(client, *given):  # as when the answer is lost and the client asks again
        create(client, *given)
        return create(client, *given)

    monkeypatch.setattr(MlflowClient, "create_registered_model", create_twice)
    began = time.monotonic()
    with lease.hold(NAME):
        assert time.monotonic() - began < lease.SECONDS / 2


@pytest.mark.slow
def test_a_holder_that_took_too_long_changes_nothing(store, expires_soon):
    with lease.hold(NAME) as held:
        time.sleep(1.1)
        with pytest.raises(StoreError, match="digits-cnn was not changed: the store took"):
            held.confirm()


@pytest.mark.slow
def test_only_one_of_many_holds_it(store):
    inside, most, turns = 0, 0, 0
    guard = threading.Lock()

    def work():
        nonlocal inside, most, turns
        for _ in range(2):
            with lease.hold(NAME):
                with guard:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.02)
                with guard:
                    inside -= 1
                    turns += 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, turns) == (1, 6)
