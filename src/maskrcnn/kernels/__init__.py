"""Alternative implementations of one operation, each behind one function that chooses among them.

Belongs here: whatever depends on the hardware or on private operators of PyTorch, with its gradient
and its fallback. The model calls the function and does not ask what device it runs on.
Does not belong here: layers with weights (`model`) and operations with a single implementation
(`ops`).
"""
