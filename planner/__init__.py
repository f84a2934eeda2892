"""Descriptor and target in, a plan with reasons out; planners are interchangeable.

``planner.rules.plan`` is always there: the baseline, and the fallback of every other planner.
"""
