"""Kvik under load and under fire for as long as one likes: the promises of docs/reliability.md at length.

    python -m tools.soak mixed vanish --minutes 10
    python -m tools.soak --promise 1,20,25 --minutes 10

A crowd of clients asks the fake model, whose every answer can be computed again from the request alone, and behaves
badly on purpose. What comes back is compared to the last character and the books must balance. The tests in
tests/e2e/test_promise_*.py are the same trials, a few seconds each. Nothing here is part of the package.
"""
