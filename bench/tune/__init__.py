"""From trials to profiles."""
