"""Feature banks, test results, paired comparisons and plots."""
