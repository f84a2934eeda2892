"""Keep the log of running steps."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "live_logs",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("step_run_id", sa.String(length=32), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["step_run_id"], ["step_runs.id"], name=op.f("fk_live_logs_step_run_id_step_runs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_live_logs")),
    )
    op.create_index(op.f("ix_live_logs_step_run_id"), "live_logs", ["step_run_id"])
