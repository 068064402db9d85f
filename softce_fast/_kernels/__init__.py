"""Compiled kernels: one module for each instruction set and storage type, and a probe of the CPU.

``vector.h`` knows the instruction sets, ``*.pxi`` hold the algorithms, ``float32.pyx`` and its
siblings are compiled once for every variant of the table in ``setup.py``.
"""
