"""Whose request is next: nobody waits for more than one request of somebody who has been served more."""

from __future__ import annotations

import random

from kvik.server.fair_queue import ANSWER_WEIGHT, MAX_KNOWN, FairQueue, Ticket


def take(queue: FairQueue) -> Ticket:
    """The next turn."""
    ticket = queue.next()
    assert ticket is not None
    queue.admit(ticket)
    return ticket


def drained(queue: FairQueue, answer: int = 0) -> list[Ticket]:
    """All turns, each request ending before the next begins."""
    order = []
    while len(queue):
        ticket = take(queue)
        queue.charge(ticket, answer)
        queue.leave(ticket)
        order.append(ticket)
    return order


def test_one_caller_is_served_in_order_of_arrival() -> None:
    queue = FairQueue()
    tickets = [Ticket("a", n + 1) for n in range(20)]
    for ticket in tickets:
        queue.add(ticket)
    assert drained(queue) == tickets
    assert queue.tokens == len(queue) == 0


def test_a_callers_own_rank_comes_before_arrival() -> None:
    queue = FairQueue()
    late, early = Ticket("a", 1, rank=-1), Ticket("a", 1, rank=1)
    for ticket in (early, late):
        queue.add(ticket)
    assert drained(queue) == [late, early]


def test_rank_counts_nothing_against_another_caller() -> None:
    queue = FairQueue()
    for _ in range(10):
        queue.add(Ticket("a", 10, rank=-100))
    other = Ticket("b", 10, rank=100)
    queue.add(other)
    assert drained(queue).index(other) <= 1


def test_a_thousand_requests_of_one_delay_a_single_one_of_another_by_one() -> None:
    queue = FairQueue()
    for _ in range(1000):
        queue.add(Ticket("flood", 100))
    for _ in range(7):
        queue.leave(take(queue))
    single = Ticket("single", 5000)
    queue.add(single)
    assert single in (take(queue), take(queue))


def test_callers_share_by_tokens_not_by_requests() -> None:
    queue = FairQueue()
    for _ in range(100):
        queue.add(Ticket("long", 1000))
    for _ in range(1000):
        queue.add(Ticket("short", 100))
    served = {"long": 0, "short": 0}
    for _ in range(440):
        ticket = take(queue)
        queue.leave(ticket)
        served[ticket.caller] += ticket.tokens
    assert abs(served["long"] - served["short"]) <= 1000


def test_answers_count_too() -> None:
    """Equal prompts, but one caller's answers are long."""
    queue = FairQueue()
    for _ in range(200):
        queue.add(Ticket("talks", 10))
        queue.add(Ticket("brief", 10))
    counts = {"talks": 0, "brief": 0}
    for _ in range(110):
        ticket = take(queue)
        counts[ticket.caller] += 1
        queue.charge(ticket, 45 if ticket.caller == "talks" else 0)
        queue.leave(ticket)
    assert counts["brief"] >= 9 * counts["talks"]


def test_time_away_is_not_owed() -> None:
    queue = FairQueue()
    for _ in range(100):
        queue.add(Ticket("steady", 100))
    for _ in range(50):
        queue.leave(take(queue))
    for _ in range(50):
        queue.add(Ticket("newcomer", 100))
    callers = [ticket.caller for ticket in drained(queue)[:20]]
    assert 9 <= callers.count("newcomer") <= 11


def test_what_was_served_is_not_forgotten_by_leaving_for_a_moment() -> None:
    """One caller has a single request at a time, each much longer than those of the other."""
    queue = FairQueue()
    for _ in range(1000):
        queue.add(Ticket("steady", 10))
    served = {"steady": 0, "now-and-then": 0}
    for _ in range(500):
        if not queue.present("now-and-then"):
            queue.add(Ticket("now-and-then", 100))
        ticket = take(queue)
        served[ticket.caller] += ticket.tokens
        queue.leave(ticket)
    assert abs(served["steady"] - served["now-and-then"]) <= 200


def test_removing_leaves_nothing() -> None:
    queue = FairQueue()
    tickets = [Ticket("a", 10), Ticket("a", 20), Ticket("b", 30)]
    for ticket in tickets:
        queue.add(ticket)
    for ticket in (tickets[1], tickets[2], tickets[0]):
        queue.remove(ticket)
    assert (len(queue), queue.tokens, queue.next()) == (0, 0, None)
    assert not queue._accounts


def test_ahead_counts_of_others_no_more_than_ones_own() -> None:
    queue = FairQueue()
    for _ in range(100):
        queue.add(Ticket("flood", 50))
    assert queue.ahead("single", 70) == (1, 70)
    assert queue.ahead("flood", 70) == (100, 5000)


def test_the_last_of_the_longest_line_is_found() -> None:
    queue = FairQueue()
    assert queue.last_of_most() is None
    tickets = [Ticket("a", 1), Ticket("b", 1), Ticket("b", 1)]
    for ticket in tickets:
        queue.add(ticket)
    assert queue.last_of_most() is tickets[2]


def test_callers_that_have_gone_are_forgotten_in_the_end() -> None:
    queue = FairQueue()
    for n in range(3 * MAX_KNOWN):
        queue.add(Ticket(f"caller-{n}", n))
        queue.leave(take(queue))
    assert len(queue._accounts) <= MAX_KNOWN


def test_random_traffic_keeps_the_books_and_the_bound() -> None:
    """Two callers that always have something waiting are never further apart than one request's cost."""
    rng = random.Random(5)
    queue = FairQueue()
    inside: list[Ticket] = []
    most = 64 * (1 + ANSWER_WEIGHT)
    for _ in range(5000):
        for caller in ("a", "b"):
            while queue.waiting(caller) < 2:
                queue.add(Ticket(caller, rng.randint(1, 64)))
        if len(inside) < 4:
            inside.append(take(queue))
        ticket = rng.choice(inside)
        queue.charge(ticket, rng.randint(0, 3))
        if rng.random() < 0.3:
            inside.remove(ticket)
            queue.leave(ticket)
        served = [queue._accounts[caller].served for caller in ("a", "b")]
        assert abs(served[0] - served[1]) <= 4 * most
        assert queue.tokens == sum(account.tokens for account in queue._accounts.values())
