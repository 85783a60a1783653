"""Which dcp size to run for some traffic, as far as what was measured tells."""
