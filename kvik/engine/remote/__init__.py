"""The engine behind a wall: in a thread or process of its own, reached by typed frames, watched, started again."""
