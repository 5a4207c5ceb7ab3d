"""The fake model: answers that are a known function of the prompt, at a set pace, with faults on command.

Its runner does the bookkeeping of a real one and computes next to nothing, so whatever goes wrong around a model shows
in the tokens, and a test can say what they should have been. It knows nothing of weights.
"""

from kvik.runners.fake.oracle import fake_answer, fake_logprob, fake_tokenizer
from kvik.runners.fake.runner import FakeRunner

__all__ = ["FakeRunner", "fake_answer", "fake_logprob", "fake_tokenizer"]
