"""Brings the local world up and down: a control plane, AWS, the joiner and kwok."""
