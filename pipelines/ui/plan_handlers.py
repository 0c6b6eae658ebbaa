"""What the tab Plan does when its limits are moved or its plan is taken over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accel.memory.fit import Needs
from accel.pipelines.job import Job, JobError
from accel.pipelines.ui import forecast, forms, plan_tab, predicted, view
from accel.pipelines.ui.handlers import Changes, told
from accel.pipelines.ui.parts import Parts
from accel.pipelines.ui.settings import PLANNED, UNACCELERATED
from accel.pipelines.ui.studio import Studio
from accel.pipelines.ui.widgets import Limit, gr


class PlanHandlers:
    """Handlers of the tab Plan over one studio."""

    def __init__(self, studio: Studio, parts: Parts) -> None:
        self.studio, self.parts = studio, parts

    def predict(
        self, *, asked: tuple[str, float] | None, memory: float, quality: float, **form: Any
    ) -> Iterator[Changes]:
        """Predict the plan for the form's job.

        For a new size a limit stays, and a slider at its top goes to the new one. While a size is
        simulated, that is said, and the slider rests, as its top is not known yet.
        """
        tab, slider = self.parts.plan, gr.skip()
        try:
            job = forms.job_of(form, self.studio)
            if self.studio.simulations.known(job) is None:
                rests = Limit(interactive=False)
                yield {tab.memory: rests, tab.picked: None, tab.predicted: plan_tab.WAIT}
                slider = Limit(interactive=True)
            needs = self.studio.simulations.needs(job)
            shape, top = predicted.shape(job), plan_tab.top(self.studio, needs)
            if asked is None or asked[0] != shape:
                limited = asked is not None and memory < asked[1]
                memory, asked = min(memory, top) if limited else top, (shape, top)
                slider = Limit(maximum=top, value=memory, interactive=True)
            plan = plan_tab.predict(self.studio, job, needs, memory, quality)
            shown = plan_tab.shown(plan, job, memory)
            yield {tab.asked: asked, tab.memory: slider, tab.predicted: shown,
                   tab.picked: plan.settings()}  # fmt: skip
        except JobError as error:
            problem = view.problem(str(error))
            yield {tab.memory: slider, tab.picked: None, tab.predicted: problem}

    def forecast(self, *, planned: Any, **form: Any) -> Changes:
        """Say beside the button what the form's job will take."""
        try:
            job = forms.job_of(form, self.studio, planned)
            shown = forecast.shown(self.studio, job, self._needs(job))
        except JobError as error:
            shown = view.problem(str(error))
        return {self.parts.generate.forecast: shown}

    def _needs(self, job: Job) -> Needs | str:
        """Return the memory of a job, or why it is not known."""
        try:
            return self.studio.simulations.needs(job)
        except JobError as error:
            return str(error)

    def table(self, *, memory: float, quality: float) -> Changes:
        """Show the measured runs within the limits."""
        return {self.parts.plan.table: plan_tab.table(self.studio, memory, quality)}

    @told
    def use_plan(self, *, picked: Any) -> Changes:
        """Take the plan that is picked over into the form."""
        if not picked:
            raise JobError("no plan is shown; choose a memory and a quality that can be had")
        preset = PLANNED if picked["plan"] else picked["preset"] or UNACCELERATED
        return {
            self.parts.tabs: gr.Tabs(selected="generate"),
            self.parts.kept.planned: picked["plan"],
            self.parts.generate.form["preset"]: preset,
        }
