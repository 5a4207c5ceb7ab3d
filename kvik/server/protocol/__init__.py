"""The OpenAI protocol as pure functions: bytes in, checked calls out; updates in, replies and stream lines out.

Knows nothing of sockets, of asyncio or of how an engine is reached.
"""
