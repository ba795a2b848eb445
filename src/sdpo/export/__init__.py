"""A run's weights as a folder that other tools load, with a card that says what they are."""

from sdpo.export.folder import Exported, export_run
from sdpo.export.hub import push_folder

__all__ = ["Exported", "export_run", "push_folder"]
