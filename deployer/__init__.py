"""Publishing into a Triton model repository: atomic, versioned, with a way back."""

from deployer.engines import PublishedEngines, publish_engines, rollback_engines, undeploy_engines
from deployer.entry import entry_spec
from deployer.publish import Published, prune, publish, rollback, undeploy

__all__ = [
    "Published",
    "PublishedEngines",
    "entry_spec",
    "prune",
    "publish",
    "publish_engines",
    "rollback",
    "rollback_engines",
    "undeploy",
    "undeploy_engines",
]
