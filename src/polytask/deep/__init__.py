"""Networks that share; torch only."""

from polytask.deep.base import ParameterGroup as ParameterGroup
from polytask.deep.base import SharingNetwork as SharingNetwork
from polytask.deep.branches import Branches as Branches
from polytask.deep.branches import padded as padded
from polytask.deep.encoders import BranchedEncoder as BranchedEncoder
from polytask.deep.encoders import Encoder as Encoder
from polytask.deep.encoders import TableInput as TableInput
from polytask.deep.encoders import mlp as mlp
from polytask.deep.encoders import pooled as pooled
from polytask.deep.hard import HardSharing as HardSharing
from polytask.deep.heads import Heads as Heads
from polytask.deep.heads import MultiTaskLoss as MultiTaskLoss
from polytask.deep.relationship import RelationshipNetwork as RelationshipNetwork
from polytask.deep.single import SingleTask as SingleTask
from polytask.deep.soft import SoftSharing as SoftSharing
from polytask.deep.stacking.composite import Residual as Residual
from polytask.deep.stacking.generic import Looped as Looped
from polytask.deep.stacking.recurrent import Recurrent as Recurrent
