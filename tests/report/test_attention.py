from __future__ import annotations

from moectl.report.attention import attention


def test_layers_with_dead_experts_come_first(stats_of):
    entries = attention(stats_of(skew=0.1, dead=[(1, 3)], metrics={"max_vio": {2: 3.0}}))
    assert [entry.layer for entry in entries] == [1, 2]
    assert entries[0].reasons == ("expert 3 never ran",)
    assert entries[1].reasons[0].endswith(" runs 4.0x its even share")


def test_few_dead_experts_are_named_and_many_counted(stats_of):
    entries = attention(stats_of(skew=0.1, dead=[(0, 3), (0, 9), *((2, expert) for expert in range(5))]))
    assert [(entry.layer, entry.reasons[0]) for entry in entries] == [
        (2, "5 of 16 experts never ran"),
        (0, "experts 3 and 9 never ran"),
    ]


def test_a_collapsed_load_is_a_reason(stats_of):
    stats = stats_of(skew=0.1, metrics={"effective_experts": {0: 5.0}, "max_vio": {0: 0.5}})
    assert "the load spreads like 5.0 of 16 experts" in next(entry for entry in attention(stats) if entry.layer == 0).reasons


def test_an_even_model_needs_no_look(stats_of):
    assert attention(stats_of(skew=0.05)) == []
