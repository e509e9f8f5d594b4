"""Going on after a kill as if it had not been: order of data, random draws, metrics and progress of a run.

:class:`framework.resuming.callback.ResumableRun` does it, under any Lightning trainer; the other files are its parts.
"""
