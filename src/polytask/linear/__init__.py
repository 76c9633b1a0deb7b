"""Non-neural multi-task learning: NumPy, numba and scikit-learn; never torch."""

from polytask.linear.alternating_structure import AlternatingStructure as AlternatingStructure
from polytask.linear.block_sparse import BlockSparse as BlockSparse
from polytask.linear.clustered_tasks import ClusteredTasks as ClusteredTasks
from polytask.linear.feature_learning import MultiTaskFeatureLearning as MultiTaskFeatureLearning
from polytask.linear.graph_regularised import GraphRegularised as GraphRegularised
from polytask.linear.grouping_overlap import GroupingOverlap as GroupingOverlap
from polytask.linear.learners import BlockSparseLearner as BlockSparseLearner
from polytask.linear.learners import LassoLearner as LassoLearner
from polytask.linear.learners import MeanRegularisedLearner as MeanRegularisedLearner
from polytask.linear.learners import PooledLearner as PooledLearner
from polytask.linear.learners import RidgeLearner as RidgeLearner
from polytask.linear.mean_regularised import MeanRegularised as MeanRegularised
from polytask.linear.model import LinearModel as LinearModel
from polytask.linear.moments import Moments as Moments
from polytask.linear.relation_learners import AlternatingStructureLearner as AlternatingStructureLearner
from polytask.linear.relation_learners import ClusteredTasksLearner as ClusteredTasksLearner
from polytask.linear.relation_learners import GroupingOverlapLearner as GroupingOverlapLearner
from polytask.linear.relation_learners import RobustMultiTaskLearner as RobustMultiTaskLearner
from polytask.linear.relation_learners import TaskCovarianceLearner as TaskCovarianceLearner
from polytask.linear.relation_learners import TraceNormLearner as TraceNormLearner
from polytask.linear.relaxed_clusters import RelaxedClusters as RelaxedClusters
from polytask.linear.robust_multi_task import RobustMultiTask as RobustMultiTask
from polytask.linear.task_covariance import TaskCovariance as TaskCovariance
from polytask.linear.trace_norm import TraceNorm as TraceNorm
