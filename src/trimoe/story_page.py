"""From the story to its page: collects the facts; draws nothing and computes nothing."""

from trimoe import __version__
from trimoe.judge.report.page import PageData
from trimoe.pipeline import BASE, Story


def page_data(story: Story) -> PageData:
    """The content of the demo's page."""
    rows = story.comparison.rows
    stats = story.stats
    contribution = (2.0 * stats.field("wnorm") + stats.field("tc")).sum(0)
    names = list(story.overall)
    facts = {
        "model": story.model.path.name if BASE not in story.models else BASE,
        "layers x experts": f"{story.model.num_layers} x {story.model.num_experts}, {story.keep} kept",
        "model fingerprint": story.model.fingerprint[:16],
        "statistics": stats.content_hash[:16],
        "calibration classes": ", ".join(stats.classes),
        "made by": f"trimoe {__version__}",
    }
    return PageData(
        title=f"{story.keep} of {story.model.num_experts} experts: what each way of choosing cost",
        facts=facts,
        benches=list(dict.fromkeys(row.bench for row in rows)),
        rows={name: {row.bench: row for row in rows if row.name == name} for name in names},
        overall=story.overall,
        sizes={name: story.size_of(name) for name in names},
        proofs={name: c.max_logit_difference for name, c in story.certificates.items()},
        contribution=contribution,
        dropped={name: [list(ids) for _, ids in sorted(m.drop.items())] for name, m in story.maps.items()},
        caveats=[
            "The bundled model is tiny and its tasks are made up: it compares methods, it does not praise a model."
        ],
    )
