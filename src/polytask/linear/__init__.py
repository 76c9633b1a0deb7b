"""Non-neural multi-task learning: NumPy, numba and scikit-learn; never torch."""
