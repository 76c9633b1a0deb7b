"""The words all rooms share. NumPy only."""

from polytask.core.data import Labels as Labels
from polytask.core.data import TaskData as TaskData
from polytask.core.errors import InputError as InputError
from polytask.core.errors import PolytaskError as PolytaskError
from polytask.core.learner import Learner as Learner
from polytask.core.learner import Model as Model
from polytask.core.relation import Relation as Relation
from polytask.core.results import Results as Results
from polytask.core.task import Binary as Binary
from polytask.core.task import Multiclass as Multiclass
from polytask.core.task import Ordinal as Ordinal
from polytask.core.task import Regression as Regression
from polytask.core.task import Task as Task
