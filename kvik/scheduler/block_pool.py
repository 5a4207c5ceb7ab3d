"""The pool of KV blocks: how many hold each block, and which block to take next.

A block is *held* (reference count above 0), *idle* (nobody holds it, but its content is kept for the prefix cache) or
*free*. Free and idle blocks form two circular doubly linked lists that run through the same two integer arrays, so
taking, holding and releasing are O(1) and allocate nothing:

    index     0 .. num_blocks - 1    num_blocks      num_blocks + 1
    entry     a block                end of free     end of idle (oldest first)

Free blocks are taken before idle ones, idle ones least recently used first. The pool does not know what is in a block
or who holds it.
"""

from __future__ import annotations

from collections.abc import Iterator


class BlockPool:
    """Reference counts and free lists of blocks 0 .. num_blocks - 1."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.refs = [0] * num_blocks
        """[num_blocks] how many block tables hold each block."""
        self.num_free = 0
        self.num_idle = 0
        self._kept = bytearray(num_blocks)
        self._free, self._idle = num_blocks, num_blocks + 1
        self._next = list(range(num_blocks + 2))
        self._prev = list(range(num_blocks + 2))
        for block in range(num_blocks):
            self._insert(block, before=self._free)
            self.num_free += 1

    @property
    def num_available(self) -> int:
        """Blocks that `take` can give."""
        return self.num_free + self.num_idle

    @property
    def num_held(self) -> int:
        return self.num_blocks - self.num_free - self.num_idle

    def take(self) -> int:
        """A block held once, its former content given up. Raises IndexError when every block is held."""
        if self.num_free:
            block = self._next[self._free]
            self.num_free -= 1
        elif self.num_idle:
            block = self._next[self._idle]
            self.num_idle -= 1
            self._kept[block] = 0
        else:
            raise IndexError(f"all {self.num_blocks} KV blocks are held; none to take")
        self._unlink(block)
        self.refs[block] = 1
        return block

    def hold(self, block: int) -> None:
        """One more table holds this block; it is held already, or idle."""
        if not self.refs[block]:
            if not self._kept[block]:
                raise ValueError(f"KV block {block} is free; only a held or idle block can be shared")
            self._unlink(block)
            self.num_idle -= 1
        self.refs[block] += 1

    def release(self, block: int) -> None:
        """One table fewer holds this block; at none it becomes idle, as the last to be reused, or free."""
        if self.refs[block] <= 0:
            raise ValueError(f"KV block {block} is released but nobody holds it")
        self.refs[block] -= 1
        if not self.refs[block]:
            self._shelve(block)

    def keep(self, block: int) -> None:
        """The content of this held block is worth keeping after its release."""
        self._kept[block] = 1

    def drop(self, block: int) -> None:
        """The content of this block is no longer worth keeping."""
        if not self._kept[block]:
            return
        self._kept[block] = 0
        if not self.refs[block]:
            self._unlink(block)
            self.num_idle -= 1
            self._shelve(block)

    def keeps(self, block: int) -> bool:
        """Whether this block's content is kept, held or idle."""
        return bool(self._kept[block])

    def free_blocks(self) -> Iterator[int]:
        """Free blocks in the order in which they will be taken."""
        return self._walk(self._free)

    def idle_blocks(self) -> Iterator[int]:
        """Idle blocks, least recently used first."""
        return self._walk(self._idle)

    def _shelve(self, block: int) -> None:
        if self._kept[block]:
            self._insert(block, before=self._idle)
            self.num_idle += 1
        else:
            # The block used last is taken next: its memory is the likeliest to be in a processor cache.
            self._insert(block, before=self._next[self._free])
            self.num_free += 1

    def _insert(self, block: int, before: int) -> None:
        after = self._prev[before]
        self._next[after] = self._prev[before] = block
        self._prev[block], self._next[block] = after, before

    def _unlink(self, block: int) -> None:
        before, after = self._prev[block], self._next[block]
        self._next[before], self._prev[after] = after, before

    def _walk(self, end: int) -> Iterator[int]:
        block = self._next[end]
        while block != end:
            yield block
            block = self._next[block]
