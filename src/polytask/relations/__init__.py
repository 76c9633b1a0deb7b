"""How tasks relate: affinity and grouping; NumPy and SciPy."""

from polytask.relations.affinity import coefficient_affinity as coefficient_affinity
from polytask.relations.grouping import cluster_tree as cluster_tree
from polytask.relations.grouping import groups as groups
