"""Alembic's environment: runs on the connection that ``Database.migrate`` hands over."""

from alembic import context

from modelium.db import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
# The caller owns the transaction, so that migrating is one transaction under one lock.
context.run_migrations()
