"""The model in the box: everything that leads from nothing to the trained weights in kvik/box.

    world/      what the model knows and can do, and the text that teaches it
    tokenizer   byte-level BPE learned from that text
    train       the training program; evaluate, export and plot come after it

Needs torch, which the package itself does not. This file holds nothing else.
"""
