"""Measurement, evidence and perplexity: every figure with its method, its raw samples and its physical limit."""
