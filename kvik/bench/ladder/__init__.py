"""The ladder: what each idea of a modern engine adds to the one below it, measured on one build and one workload."""
