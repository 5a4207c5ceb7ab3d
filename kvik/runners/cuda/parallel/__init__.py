"""One model on several GPUs: every rank holds some heads, channels and tokens of the vocabulary, and runs every plan.

wire.py     a StepPlan as bytes           group.py    sums and gathers between ranks
rank.py     a child's loop                runner.py   rank 0, which the engine sees
"""
