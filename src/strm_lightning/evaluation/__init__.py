"""Feature banks, results that can be compared, and pictures of them."""
