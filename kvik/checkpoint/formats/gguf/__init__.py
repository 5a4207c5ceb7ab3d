"""GGUF: llama.cpp's file of one model, read without belief and written so that others open it.

`file.py` reads one file, `parts.py` one or many; `layouts.py` draws the blocks of every quantized type, `unpack.py`
takes them apart and `pack.py` puts them together; `search.py` chooses levels and scales. Nothing here knows what a
tensor is for.
"""
