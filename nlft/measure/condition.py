"""The conditions under which a model is scored: the same items, and another part of the adapter at work.

base      the untouched base, before anything is learned (stage 0)
off       the adapter switched off: an integrity check, which says nothing about retention
on        as it would be used, nothing told about the task: the truth, and what every matrix holds
oracle    told the task: its part alone, with its gate and thresholds open; on probes the base alone
ungated   nothing told and nothing asked: every part of every task at once, all gates and thresholds open
"""

from __future__ import annotations
