"""What a data set is like and what that does to training, measured in one pass. Knows no page and no stage."""

from alignkit.data.checking.check import Asked, Report, check_data
from alignkit.data.taking import KINDS

__all__ = ["KINDS", "Asked", "Report", "check_data"]
