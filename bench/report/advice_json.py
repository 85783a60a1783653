"""A recommendation as plain data. Standard library only."""

from __future__ import annotations

from typing import Any

from bench.recommend.decision import Decision
from bench.recommend.recommend import Answer, Recommendation
from bench.recommend.steptime import Span
from bench.report.advice import changes, paragraph


def to_json(found: Recommendation) -> dict[str, Any]:
    """Return everything as plain data."""
    answer = found.answer
    return {
        "model": found.shape.name,
        "tp": found.tp,
        "answer": answer_json(answer),
        "tuned_answer": answer_json(found.tuned_answer),
        "text": paragraph(found),
        "batches": [{"batch": str(batch), "weight": weight} for batch, weight in found.traffic.batches],
        "layers": found.shape.layers,
        "slo_us": found.slo_us,
        "engine": _decision_json(found.engine),
        "tuned": _decision_json(found.tuned),
        "capacity": {
            str(dcp): {
                "kv_tokens": room.memory.tokens,
                "requests": room.requests(found.traffic),
                "request_tokens": found.traffic.length,
                "fits": room.requests(found.traffic) >= found.traffic.requests,
                "weights_taken_off": not room.upper,
                "workspace_bytes": room.workspace,
            }
            for dcp, room in found.rooms.items()
        },
        "unmeasured": list(found.unmeasured),
        "what_could_change_it": changes(found),
    }


def answer_json(answer: Answer) -> dict[str, Any]:
    """Return an answer as plain data."""
    return {
        "dcp": answer.dcp,
        "why": str(answer.why),
        "firm": answer.is_firm,
        "between": list(answer.between),
        "overfull": answer.overfull,
        "late": answer.late,
    }


def _decision_json(decision: Decision | None) -> list[dict[str, Any]] | None:
    if decision is None:
        return None
    return [
        {
            "dcp": one.layout.dcp,
            "us_per_layer": _span_json(one.span),
            "break_even_exchange_us": one.break_even_us(decision.base),
            "against_dcp_1": str(one.against(decision.base)) if one is not decision.base else None,
            "parts": [
                {
                    "batch": str(part.step.workload),
                    "settings": part.settings.to_json(),
                    "label": str(part.step.label),
                    "basis": [str(batch) for batch in part.step.basis],
                    "error": part.step.error,
                    "doublings_beyond": part.step.beyond,
                    "step_us": _span_json(part.step.span),
                    "exchange": {
                        "via": None if part.via is None else str(part.via),
                        "origin": str(part.exchange.origin),
                        **_span_json(part.exchange.span),
                    },
                }
                for part in one.parts
            ],
        }
        for one in decision.options
    ]


def _span_json(span: Span) -> dict[str, float]:
    return {"median_us": span.median_us, "low_us": span.low_us, "high_us": span.high_us}
