"""The conditions under which a model is scored: the same items, and another part of the adapter at work.

base      the untouched base, before anything is learned (stage 0)
off       the adapter switched off: an integrity check, which says nothing about retention
on        as it would be used, nothing told about the task: the truth, and what every matrix holds
oracle    told the task: its part alone, with its gate and thresholds open; on probes the base alone
ungated   nothing told and nothing asked: every part of every task at once, all gates and thresholds open

After a dissection (`nlft.dissect`) also, each on few rows of a column:

without:<part>          on, without one task's part, one level or one layer
recovered:<task>        on, after ten train rows of that task again
mixed:<in front>        on, each row behind a row of the task or probe that is named
base_mixed:<in front>   the same rows on the base
"""

from __future__ import annotations
