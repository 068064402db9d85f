"""Compiled kernels: one module for each instruction set and storage type, and a probe of the CPU.

``vector.h`` knows the instruction sets and storage types, ``*.pxi`` hold the algorithms;
``full.pyx`` and ``half.pyx`` are compiled for each instruction set and storage type of the tables
in ``setup.py``.
"""
