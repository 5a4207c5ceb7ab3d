"""The prefix cache: which KV block holds the keys and values of which beginning of a sequence.

A full block is named by a chained digest over the salt and all tokens up to its end. A digest only finds a candidate:
what is shared is decided by comparing the tokens themselves, back to the beginning, so a collision costs a miss and
never a wrong answer. Comparing is cheap because equal beginnings come to share their `Prefix` objects.

The cache does not know reference counts or the order of eviction; the block pool does.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable

from kvik.errors import ConfigError

Digest = Callable[[bytes, bytes], bytes]


def sha256_digest(parent: bytes, content: bytes) -> bytes:
    """The digest of a block from its parent's digest and its own content (SHA-256: no one can aim for a collision)."""
    return hashlib.sha256(parent + content).digest()


class Prefix:
    """A beginning of a sequence that ends with a full block: that block's tokens, and the beginning before it.

    The root of a chain stands before the first block; its content is the salt and it has no parent.
    """

    __slots__ = ("block", "content", "digest", "parent")

    def __init__(self, digest: bytes, content: bytes, parent: Prefix | None) -> None:
        self.digest = digest
        self.content = content
        """The block's token ids as int32 bytes."""
        self.parent = parent
        self.block = -1
        """The KV block that is cached under this prefix, or -1."""


def equal_prefixes(a: Prefix, b: Prefix) -> bool:
    """Whether two prefixes stand for the same salt and tokens. On success they share one parent from then on."""
    left: Prefix | None = a
    right: Prefix | None = b
    while left is not right:
        if left is None or right is None or left.content != right.content:
            return False
        left, right = left.parent, right.parent
    a.parent = b.parent
    return True


class PrefixCache:
    """Finds KV blocks by the tokens they hold and all tokens before them."""

    def __init__(self, block_size: int, digest: Digest = sha256_digest) -> None:
        if block_size < 1:
            raise ConfigError(f"block_size is {block_size}; expected at least 1")
        self._block_size = block_size
        self._digest = digest
        self._by_digest: dict[bytes, Prefix] = {}
        self._by_block: dict[int, Prefix] = {}

    def __len__(self) -> int:
        return len(self._by_block)

    def blocks(self) -> dict[int, Prefix]:
        """Every cached block with its prefix (a copy)."""
        return dict(self._by_block)

    def extend(self, chain: list[Prefix], tokens: list[int], count: int, salt: bytes = b"") -> None:
        """Lengthen a sequence's chain of prefixes to `count` full blocks of its tokens."""
        size = self._block_size
        for index in range(len(chain), count):
            parent = chain[-1] if chain else Prefix(self._digest(b"", salt), salt, None)
            content = array("i", tokens[index * size : (index + 1) * size]).tobytes()
            chain.append(Prefix(self._digest(parent.digest, content), content, parent))

    def match(self, chain: list[Prefix], limit: int) -> list[int]:
        """The cached blocks of the longest known beginning, at most `limit`. Known prefixes replace those in chain."""
        blocks: list[int] = []
        for index in range(min(limit, len(chain))):
            prefix = chain[index]
            if index:
                prefix.parent = chain[index - 1]
            found = self._by_digest.get(prefix.digest)
            if found is None or not equal_prefixes(found, prefix):
                break
            chain[index] = found
            blocks.append(found.block)
        return blocks

    def insert(self, chain: list[Prefix], index: int, block: int) -> bool:
        """Cache a computed block under chain[index]; False when that content, or a colliding one, is cached already."""
        prefix = chain[index]
        found = self._by_digest.setdefault(prefix.digest, prefix)
        if found is not prefix:
            if equal_prefixes(found, prefix):
                chain[index] = found
            return False
        if prefix.block >= 0:
            return False
        prefix.block = block
        self._by_block[block] = prefix
        return True

    def forget(self, block: int) -> None:
        """This block no longer holds what it was cached for. Nothing happens if it was not cached."""
        prefix = self._by_block.pop(block, None)
        if prefix is not None:
            prefix.block = -1
            del self._by_digest[prefix.digest]
