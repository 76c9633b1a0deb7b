"""Plan of runs, runs, statistics, and a verdict for each task."""

from polytask.compare.plan import MethodSpec as MethodSpec
from polytask.compare.plan import Plan as Plan
from polytask.compare.plan import SplitPlan as SplitPlan
from polytask.compare.run import run as run
from polytask.compare.taskwise import TaskwiseModel as TaskwiseModel
from polytask.compare.tuning import tune_and_fit as tune_and_fit
