"""The one training loop and the learners made of (network, balancer)."""

from polytask.train.expert_learners import CGCLearner as CGCLearner
from polytask.train.expert_learners import DselectKLearner as DselectKLearner
from polytask.train.expert_learners import MmoeLearner as MmoeLearner
from polytask.train.expert_learners import MTANLearner as MTANLearner
from polytask.train.expert_learners import PLELearner as PLELearner
from polytask.train.hierarchy_learners import AdaptiveSharingLearner as AdaptiveSharingLearner
from polytask.train.hierarchy_learners import JointManyTaskLearner as JointManyTaskLearner
from polytask.train.hierarchy_learners import LearnedBranchingLearner as LearnedBranchingLearner
from polytask.train.hierarchy_learners import LowSupervisionLearner as LowSupervisionLearner
from polytask.train.learners import HardSharingLearner as HardSharingLearner
from polytask.train.learners import SingleTaskNetworkLearner as SingleTaskNetworkLearner
from polytask.train.learners import SoftSharingLearner as SoftSharingLearner
from polytask.train.learners import TraceNormSharingLearner as TraceNormSharingLearner
from polytask.train.loop import DivergedError as DivergedError
from polytask.train.loop import Fitted as Fitted
from polytask.train.loop import OutOfMemoryError as OutOfMemoryError
from polytask.train.loop import fit as fit
from polytask.train.model import NetworkModel as NetworkModel
from polytask.train.parallel import join_processes as join_processes
from polytask.train.relationship_learners import RelationshipNetworkLearner as RelationshipNetworkLearner
from polytask.train.relationship_learners import TensorFactorisationLearner as TensorFactorisationLearner
from polytask.train.settings import TrainSettings as TrainSettings
from polytask.train.stitch_learners import CrossStitchLearner as CrossStitchLearner
from polytask.train.stitch_learners import SluiceLearner as SluiceLearner
