"""The experiment around the attention core: sweep, check, time, pick, plot."""
