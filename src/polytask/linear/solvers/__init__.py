"""Solvers of the linear room; they know losses and penalties as arrays, not estimators."""
