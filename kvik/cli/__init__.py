"""The command line: one file per command. The only reader of the environment."""
