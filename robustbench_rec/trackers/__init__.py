"""Trackers by name."""

from robustbench_rec.registry import Registry
from robustbench_rec.tracking import Tracker

trackers: Registry[Tracker] = Registry(__name__)
