"""Non-neural multi-task learning: NumPy, numba and scikit-learn; never torch."""

from polytask.linear.block_sparse import BlockSparse as BlockSparse
from polytask.linear.learners import BlockSparseLearner as BlockSparseLearner
from polytask.linear.learners import LassoLearner as LassoLearner
from polytask.linear.learners import MeanRegularisedLearner as MeanRegularisedLearner
from polytask.linear.learners import PooledLearner as PooledLearner
from polytask.linear.learners import RidgeLearner as RidgeLearner
from polytask.linear.mean_regularised import MeanRegularised as MeanRegularised
from polytask.linear.model import LinearModel as LinearModel
from polytask.linear.moments import Moments as Moments
