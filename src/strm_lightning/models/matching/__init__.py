"""Matching: from the features of an episode's clips to logits, as pure functions.

`alignment` has the frame-to-frame methods, `otam` the recurrence of one of them, `kernels` ridge regression and
descriptions of whole clips, `lag` the comparison that forgives a shift in time. `shots` brings the clips of a class
together, `precision` sets the arithmetic.
"""
