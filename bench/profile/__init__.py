"""Profiles: what tuning chose for each batch, and how that answers for batches that were not measured."""

from bench.profile.profile import Choice, Profile

__all__ = ["Choice", "Profile"]
