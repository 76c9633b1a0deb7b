"""Plan of runs, runs, statistics, and a verdict for each task."""
from polytask.compare.taskwise import TaskwiseModel as TaskwiseModel
