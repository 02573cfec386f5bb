"""Runs generated code where it can do no harm. (contents listed below once measured)"""

from trimoe.evaluate.sandbox.engines import UNSAFE, Policy, current, using
from trimoe.evaluate.sandbox.inside.limits import Limits
from trimoe.evaluate.sandbox.jobs import Calls, Check, Job, Outcome, Program, Step
from trimoe.evaluate.sandbox.pool import Sandbox, run_jobs

__all__ = ["UNSAFE", "Calls", "Check", "Job", "Limits", "Outcome", "Policy", "Program", "Sandbox", "Step", "current", "run_jobs", "using"]
