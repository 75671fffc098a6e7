"""Published data into records, split and generated. Knows no model."""
