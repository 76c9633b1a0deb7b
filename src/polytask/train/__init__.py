"""The one training loop and the learners made of (network, balancer)."""

from polytask.train.learners import HardSharingLearner as HardSharingLearner
from polytask.train.learners import SingleTaskNetworkLearner as SingleTaskNetworkLearner
from polytask.train.learners import SoftSharingLearner as SoftSharingLearner
from polytask.train.loop import DivergedError as DivergedError
from polytask.train.loop import Fitted as Fitted
from polytask.train.loop import TrainSettings as TrainSettings
from polytask.train.loop import fit as fit
from polytask.train.model import NetworkModel as NetworkModel
