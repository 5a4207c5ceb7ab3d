"""PrefixCache: what is found, and that a collision of digests never shares a wrong block."""

from __future__ import annotations

import pytest

from kvik.errors import ConfigError
from kvik.scheduler.prefix_cache import Digest, Prefix, PrefixCache, equal_prefixes, sha256_digest


def cached(tokens: list[int], *, salt: bytes = b"", digest: Digest = sha256_digest) -> PrefixCache:
    """A cache of block size 2 with these tokens in blocks 10, 11, .."""
    cache = PrefixCache(2, digest)
    chain: list[Prefix] = []
    cache.extend(chain, tokens, len(tokens) // 2, salt)
    assert all(cache.insert(chain, index, 10 + index) for index in range(len(chain)))
    return cache


def lookup(cache: PrefixCache, tokens: list[int], salt: bytes = b"") -> list[int]:
    chain: list[Prefix] = []
    cache.extend(chain, tokens, len(tokens) // 2, salt)
    return cache.match(chain, len(chain))


def test_the_longest_known_beginning_is_found() -> None:
    cache = cached([1, 2, 3, 4, 5, 6])
    assert lookup(cache, [1, 2, 3, 4, 5, 6, 7]) == [10, 11, 12]
    assert lookup(cache, [1, 2, 3, 4, 9, 9]) == [10, 11]
    assert lookup(cache, [3, 4, 5, 6]) == []
    assert lookup(cache, [9, 9, 3, 4]) == []


def test_a_limit_cuts_the_match() -> None:
    cache = cached([1, 2, 3, 4])
    chain: list[Prefix] = []
    cache.extend(chain, [1, 2, 3, 4], 2)
    assert cache.match(chain, 1) == [10]


def test_another_salt_finds_nothing() -> None:
    cache = cached([1, 2, 3, 4], salt=b"a")
    assert lookup(cache, [1, 2, 3, 4], b"a") == [10, 11]
    assert lookup(cache, [1, 2, 3, 4], b"b") == []
    assert lookup(cache, [1, 2, 3, 4]) == []


@pytest.mark.parametrize("digest", [lambda parent, content: b"", lambda parent, content: parent or content[:1]])
def test_colliding_digests_cost_hits_and_never_share_a_wrong_block(digest: Digest) -> None:
    cache = PrefixCache(2, digest)
    sequences = [[1, 2, 3, 4], [1, 2, 5, 6], [7, 8, 3, 4], [7, 8, 5, 6], [3, 4, 3, 4]]
    contents: dict[int, list[int]] = {}
    for number, tokens in enumerate(sequences * 2):
        chain: list[Prefix] = []
        cache.extend(chain, tokens, 2)
        for index, block in enumerate(cache.match(chain, 2)):
            assert contents[block] == tokens[: 2 * index + 2]
        for index in range(2):
            if cache.insert(chain, index, 10 * number + index):
                contents[10 * number + index] = tokens[: 2 * index + 2]
    assert 1 <= len(cache) < 8


def test_equal_tokens_under_another_parent_are_not_equal_even_when_digests_collide() -> None:
    cache = cached([1, 2, 3, 4], digest=lambda parent, content: content)
    assert lookup(cache, [1, 2, 3, 4]) == [10, 11]
    assert lookup(cache, [5, 6, 3, 4]) == []
    chain: list[Prefix] = []
    cache.extend(chain, [5, 6, 3, 4], 2)
    assert cache.insert(chain, 0, 20)
    assert not cache.insert(chain, 1, 21)
    assert lookup(cache, [5, 6, 3, 4]) == [20]


def test_the_first_block_of_a_content_stays_cached() -> None:
    cache = cached([1, 2])
    chain: list[Prefix] = []
    cache.extend(chain, [1, 2], 1)
    assert not cache.insert(chain, 0, 30)
    assert not cache.insert(chain, 0, 31)
    assert lookup(cache, [1, 2]) == [10]


def test_a_forgotten_block_is_not_found_and_its_successors_only_through_it() -> None:
    cache = cached([1, 2, 3, 4])
    cache.forget(10)
    cache.forget(10)
    assert lookup(cache, [1, 2, 3, 4]) == []
    chain: list[Prefix] = []
    cache.extend(chain, [1, 2], 1)
    assert cache.insert(chain, 0, 40)
    assert lookup(cache, [1, 2, 3, 4]) == [40, 11]


def test_equal_chains_come_to_share_their_parents() -> None:
    cache = PrefixCache(1)
    chains: list[list[Prefix]] = [[], []]
    for chain in chains:
        cache.extend(chain, [1, 2, 3], 3)
    assert equal_prefixes(chains[0][2], chains[1][2])
    assert chains[0][2].parent is chains[1][1]


def test_a_chain_grows_by_whole_blocks_only_where_it_must() -> None:
    cache = PrefixCache(2)
    chain: list[Prefix] = []
    cache.extend(chain, [1, 2, 3, 4, 5], 1)
    first = chain[0]
    cache.extend(chain, [1, 2, 3, 4, 5], 2)
    assert chain[0] is first
    assert chain[1].parent is first
    assert len({prefix.digest for prefix in chain}) == 2


def test_a_block_size_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="block_size is 0"):
        PrefixCache(0)
