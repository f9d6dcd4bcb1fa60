"""The shared memory of a ring: words, locks, deques, outboxes, arena, board.  See README.md in this folder."""
