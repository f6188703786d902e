"""The losses and estimators against their definitions, in float64."""
