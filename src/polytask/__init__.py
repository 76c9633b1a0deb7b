"""polytask: multi-task learning that says which tasks gain and which are hurt."""

from polytask.core import Binary as Binary
from polytask.core import InputError as InputError
from polytask.core import Labels as Labels
from polytask.core import Multiclass as Multiclass
from polytask.core import Ordinal as Ordinal
from polytask.core import PolytaskError as PolytaskError
from polytask.core import Regression as Regression
from polytask.core import Relation as Relation
from polytask.core import Results as Results
from polytask.core import Task as Task
from polytask.core import TaskData as TaskData

__version__ = "0.1.0"
