"""What a data set is like and what that does to training, measured in one pass. Knows no page and no stage."""

from alignkit.data.checking.check import Asked, Report, check_data
from alignkit.data.checking.finding import NAMES
from alignkit.data.taking import KINDS

__all__ = ["KINDS", "NAMES", "Asked", "Report", "check_data"]
