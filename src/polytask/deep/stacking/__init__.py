"""Stacked forms of blocks, one kind per file; importing this package registers them all."""

from polytask.deep.stacking import (
    composite,
    convolution,
    embedding,
    generic,
    linear,
    norms,
    recurrent,
    rowwise,
)
from polytask.deep.stacking.base import STACKS as STACKS
from polytask.deep.stacking.base import Stacked as Stacked
from polytask.deep.stacking.base import stack as stack

_REGISTERED = (composite, convolution, embedding, generic, linear, norms, recurrent, rowwise)
