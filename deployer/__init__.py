"""Publishing into a Triton model repository: atomic, versioned, with a way back."""

from deployer.entry import entry_spec
from deployer.publish import Published, prune, publish, rollback, undeploy

__all__ = ["Published", "entry_spec", "prune", "publish", "rollback", "undeploy"]
