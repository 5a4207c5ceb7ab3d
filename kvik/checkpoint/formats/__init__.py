"""File formats: bytes on disk to named arrays. They know nothing of models."""
