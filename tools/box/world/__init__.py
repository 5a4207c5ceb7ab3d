"""What the model in the box knows and can do, as programs that write examples of it.

Every program takes a source of chance and a split, and makes one Turn: a question and its one right answer. Sheets of
text beside the code hold what is known; grammars say in how many ways it is asked. Nothing here needs torch.
"""
