"""The page that a recipe's runs leave behind. Knows run directories only: no model, no torch."""

from alignkit.report.report import write_report

__all__ = ["write_report"]
