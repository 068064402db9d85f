"""Compiled code: what Python calls, kernels of each build, a probe of the CPU.

``execute.pyx`` lays a call out, plans it and shares it out over threads. ``kernel.pyx`` is compiled
for each instruction set and compute type of the tables in ``setup.py``: it works on what
``problem.pxd`` describes.
"""
