"""The HTTP server: the OpenAI protocol, and what stands between it and the network."""
