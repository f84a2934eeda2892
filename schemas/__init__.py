"""The nouns of Modelium as frozen documents; imports nothing of ours.

Import each noun from the module that owns it, for example ``from schemas.job import Job``.
"""
