"""Preprocessing of MRI slices: decode, crop, denoise, colour, normalise. Imports nothing else of ours."""
