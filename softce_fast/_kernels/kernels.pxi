# Kernels: one source for every storage type and instruction set.
#
# DESIGN NOTE to be completed at the end of the foundation work.
