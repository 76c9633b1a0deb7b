"""How tasks relate: affinity and grouping; NumPy and SciPy."""
