"""Dataset adapters to name in a recipe, such as `data.gsm8k:problem`, and shipped data."""
