"""The glue: settings, database, jobs, the Celery app and its tasks, the report and the command line."""

__version__ = "0.1.0"
