"""Ready-made auxiliary tasks."""

from polytask.auxiliary.adversarial import DomainHead as DomainHead
from polytask.auxiliary.adversarial import GradientReversal as GradientReversal
