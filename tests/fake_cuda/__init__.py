"""CUDA without a card: a training step on fake CUDA tensors, every kernel of it, every wait and every copy.

`guard.py` must be asked for its device before torch is imported; so what uses it is a process of its own. Tests read what
`python -m tests.fake_cuda` prints, `python -m tests.benchmarks.roofline` puts a time to it.
"""
