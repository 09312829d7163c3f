"""Probes of a few features, beside the best that can be done with the activations themselves."""
