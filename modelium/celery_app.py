"""The Celery app: task names, queues, routes. JSON only; every task is idempotent because claiming is."""

from __future__ import annotations

from functools import cache
from typing import Any

from celery import Celery
from celery.signals import setup_logging, worker_init, worker_shutting_down
from kombu.entity import Queue
from kombu.exceptions import OperationalError

from modelium import jobs, logs, outbox, settings, tasks
from modelium.broker import broker_url
from modelium.context import Context

MEASURE_QUEUE = "measure"
GENERAL_QUEUES = tuple(stage for stage in jobs.STAGES if stage != MEASURE_QUEUE)


@cache
def process_context() -> Context:
    """Return this process's context."""
    return Context(settings.load())


def make_app() -> Celery:
    """Return the app, configured from the settings."""
    context = process_context()
    made = Celery("modelium", broker=broker_url(context))
    made.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=False,  # the reaper hands a dead worker's job on, and counts how often
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_enable_remote_control=False,
        worker_send_task_events=True,
        task_send_sent_event=True,
        broker_connection_retry_on_startup=True,
        # Longer than any stage: a redelivery while the first delivery still runs is harmless, and of no use.
        broker_transport_options={"visibility_timeout": 86_400, "unacked_restore_interval": 10},
        task_queues=[Queue(stage) for stage in jobs.STAGES],  # type: ignore[no-untyped-call]
        task_routes={f"modelium.{stage}": {"queue": stage} for stage in jobs.STAGES},
        task_create_missing_queues=False,
        task_default_queue="analyze",
    )
    return made


app = make_app()


@setup_logging.connect  # type: ignore[untyped-decorator]
def _configure_logging(**_: Any) -> None:
    logs.configure(process_context().settings)


@worker_init.connect  # type: ignore[untyped-decorator]
def _make_parts(**_: Any) -> None:
    # Before there are threads, which would each make them, and before the first drop has to wait for them.
    context = process_context()
    context.database.migrate()
    context.sandbox.isolation(context.settings.limits())


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _give_back(**_: Any) -> None:
    tasks.interrupt()


def publish(job_id: str, stage: str) -> None:
    """Send one stage's message. Raises ConnectionError when the broker does not answer."""
    try:
        app.send_task(f"modelium.{stage}", args=[job_id], queue=stage, retry=False)
    except OperationalError as error:
        raise ConnectionError(str(error)) from error


def _task(stage: str) -> None:
    @app.task(name=f"modelium.{stage}")  # type: ignore[untyped-decorator]
    def run(job_id: str) -> None:
        context = process_context()
        if tasks.run_stage(context, job_id, stage) is not None:
            # Sooner than the relay's next look, which finds whatever a crash leaves here.
            outbox.relay(context.database, publish, job_id=job_id)


for _stage in jobs.STAGES:
    _task(_stage)
