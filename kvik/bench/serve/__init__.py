"""Load on an OpenAI-compatible server over HTTP, and what its clients saw of it."""
