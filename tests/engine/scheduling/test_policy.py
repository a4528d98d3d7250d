"""Scheduling policies: which sequences share a queue, and which names the configuration knows."""

from typing import get_args

from control_plane.config import Scheduling
from control_plane.engine.scheduling.policy import POLICIES, FairAcrossTenants, FirstComeFirstServed
from tests.support.scheduling import make_sequence


def test_every_configured_name_has_a_policy() -> None:
    assert set(POLICIES) == set(get_args(Scheduling))


def test_fair_scheduling_has_a_queue_for_each_tenant() -> None:
    owner = FairAcrossTenants().owner
    assert owner(make_sequence(1, tenant="a")) == owner(make_sequence(2, tenant="a"))
    assert owner(make_sequence(1, tenant="a")) != owner(make_sequence(1, tenant="b"))


def test_first_come_first_served_has_one_queue() -> None:
    owner = FirstComeFirstServed().owner
    assert owner(make_sequence(1, tenant="a")) == owner(make_sequence(1, tenant="b"))
