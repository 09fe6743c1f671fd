"""Rewards to name in a recipe, such as `rewards.exact:Exact`."""
