"""What a data set is like and what that does to training, measured in one pass. Knows no page and no stage."""

from alignkit.data.checking.check import Report, check_data

__all__ = ["Report", "check_data"]
