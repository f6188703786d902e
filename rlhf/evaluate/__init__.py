"""What came of training: measures, comparisons, and the report."""
