"""Penalties on the coefficient matrix: value and proximal map."""

from polytask.linear.penalties.block import RowNorm as RowNorm
