"""The whole test plan: throughput, latency, memory, prefix cache, scheduling, graphs, scaling, and the code itself."""
